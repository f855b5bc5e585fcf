"""Whether the remote code of a staged folder will be found and understood by the library that loads it."""

from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT_PACKAGES = (
    "modeling_vggt_qwen3",
    "processing",
    "training",
    "evaluation",
    "metrics",
    "datasets_scripts",
    "hub_upload",
)
"""What a stranger does not have. A module of the flat folder may bear such a name, but is imported by `.name`."""

THIRD_PARTY = ("torch", "transformers", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub")
RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", flags=re.MULTILINE)
"""How the library looks for relative imports: in the text, comments and docstrings included."""

ENTRY_FILES = ("config.json", "processor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Module:
    """One file of code: its classes, the modules of its folder that it imports, and what is wrong with it."""

    classes: frozenset[str]
    siblings: frozenset[str]
    faults: tuple[str, ...]


def check_code(folder: Path, auto_map: dict[str, str]) -> list[str]:
    """Faults of the code and of how the configurations point to it.

    Args:
        folder: flat, with the code beside the configurations.
        auto_map: what config.json must say.
    """
    modules = {path.stem: read_module(path) for path in sorted(folder.glob("*.py"))}
    faults = [fault for module in modules.values() for fault in module.faults]
    for name, module in modules.items():
        for sibling in sorted(module.siblings - set(modules)):
            faults.append(f"{sibling}.py is missing: {name}.py imports it")
    return faults + _auto_map_faults(folder, modules, auto_map) + _unused(modules, auto_map)


def read_module(path: Path) -> Module:
    """Reads one file of code without running it."""
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return Module(frozenset(), frozenset(), (f"{path.name} is not Python: {error}",))
    faults, siblings, optional = [], set(), _guarded_lines(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            siblings |= {node.module} if node.level == 1 and node.module and "." not in node.module else set()
            faults += _relative_fault(node, path.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            faults += _absolute_faults(node, path.name, optional)
    for match in RELATIVE_IMPORT.finditer(text):
        name = match.group(1) or match.group(2)
        if name not in siblings:
            faults.append(
                f"{path.name} holds text that the library takes for a relative import: {match.group().strip()!r}"
            )
    classes = frozenset(node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return Module(classes, frozenset(siblings), tuple(faults))


def _relative_fault(node: ast.ImportFrom, name: str) -> list[str]:
    if node.level == 1 and node.module and "." not in node.module:
        return []
    written = f"from {'.' * node.level}{node.module or ''} import {node.names[0].name}"
    return [f"{name}, line {node.lineno}: `{written}` fails in a flat folder; write `from .module import name`"]


def _absolute_faults(node: ast.Import | ast.ImportFrom, name: str, optional: set[int]) -> list[str]:
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    faults = []
    for package in {module.partition(".")[0] for module in modules}:
        if package in PROJECT_PACKAGES:
            faults.append(f"{name}, line {node.lineno}: imports {package}, which only this project has")
        elif package not in (*THIRD_PARTY, *sys.stdlib_module_names) and node.lineno not in optional:
            faults.append(f"{name}, line {node.lineno}: imports {package}; guard it by try, or do without")
    return faults


def _guarded_lines(tree: ast.AST) -> set[int]:
    """Lines within the body of a try statement or of an `if is_…_available():`, which the library leaves out."""
    guarded: set[int] = set()
    for node in ast.walk(tree):
        is_guard = isinstance(node, ast.If) and re.match(r"is_\w+_available\(\)", ast.unparse(node.test))
        if isinstance(node, ast.Try) or is_guard:
            for statement in node.body:
                guarded |= set(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return guarded


def _auto_map_faults(folder: Path, modules: dict[str, Module], auto_map: dict[str, str]) -> list[str]:
    faults = []
    for name in ENTRY_FILES:
        for auto_class, reference in _auto_maps(folder / name):
            stem, _, class_name = reference.rpartition(".")
            if stem not in modules or class_name not in modules[stem].classes:
                faults.append(f"{name}: auto_map gives {auto_class} = {reference!r}, which is not in this folder")
    config = folder / "config.json"
    found = dict(_auto_maps(config))
    for auto_class, wanted in auto_map.items():
        if config.is_file() and found.get(auto_class) != wanted:
            faults.append(f"config.json: auto_map gives {auto_class} = {found.get(auto_class)!r}, wanted {wanted!r}")
    return faults


def _auto_maps(path: Path) -> list[tuple[str, str]]:
    """(Auto class, reference) of every auto_map within a JSON file; damaged files are reported elsewhere."""
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    return [pair for mapping in _find(value, "auto_map") for pair in mapping.items() if isinstance(pair[1], str)]


def _find(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    here = [value[key]] if isinstance(value.get(key), dict) else []
    return here + [found for name, item in value.items() if name != key for found in _find(item, key)]


def _unused(modules: dict[str, Module], auto_map: dict[str, str]) -> list[str]:
    """Code that nothing would load: a leftover, or a sign that the wrong file was staged."""
    reached, waiting = set(), {reference.rpartition(".")[0] for reference in auto_map.values()}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= (modules[name].siblings - reached) if name in modules else set()
    return [f"{name}.py is there, but nothing imports it" for name in sorted(set(modules) - reached)]
