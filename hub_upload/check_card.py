"""Whether a card says what a reader and the Hub need: licence, how to load, and figures with their origin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", flags=re.DOTALL)
REQUIRED_KEYS = {
    "model": {"library_name": "transformers", "pipeline_tag": "image-text-to-text"},
    "dataset": {},
    "space": {"sdk": "gradio", "app_file": "app.py"},
}
REQUIRED_SECTIONS = {
    "model": ("Use", "Intended use", "Limits", "Licence", "Cite"),
    "dataset": ("Use", "What it holds", "Limits", "Licence", "Cite"),
    "space": (),
}


def check_card(folder: Path, repo_type: str) -> list[str]:
    """Faults of README.md; none where it is missing, which is reported with the files."""
    path = folder / "README.md"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    match = FRONT_MATTER.match(text)
    if not match:
        return ["README.md has no metadata: it must begin with a block of YAML between two lines of ---"]
    try:
        metadata = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"README.md: its metadata is not YAML ({error})"]
    if not isinstance(metadata, dict):
        return [f"README.md: its metadata is {type(metadata).__name__}, wanted keys and values"]
    body = text[match.end() :]
    faults = _licence_faults(metadata, folder) + _results_faults(metadata)
    for key, wanted in REQUIRED_KEYS[repo_type].items():
        if metadata.get(key) != wanted:
            faults.append(f"README.md: {key} is {metadata.get(key)!r}, wanted {wanted!r}")
    for section in REQUIRED_SECTIONS[repo_type]:
        if not re.search(rf"^## {section}\s*$", body, flags=re.MULTILINE):
            faults.append(f"README.md has no section {section!r}")
    if re.search(r"\{\{|\}\}|\bTODO\b|\[More Information Needed\]", body):
        faults.append("README.md holds a placeholder that was never filled")
    return faults


def _licence_faults(metadata: dict[str, Any], folder: Path) -> list[str]:
    licence = metadata.get("license")
    if not isinstance(licence, str) or not licence.strip():
        return ["README.md names no licence: without `license` nobody may use this"]
    if licence != "other":
        return []
    faults = [
        f"README.md: a licence `other` needs {key}" for key in ("license_name", "license_link") if key not in metadata
    ]
    link = str(metadata.get("license_link", ""))
    if link and "://" not in link and not (folder / link).is_file():
        faults.append(f"README.md: license_link is {link}, and no such file is here")
    return faults


def _results_faults(metadata: dict[str, Any]) -> list[str]:
    """A figure stands with its dataset, its metric and where it comes from, or not at all."""
    faults = []
    for model in metadata.get("model-index") or []:
        for result in model.get("results", []):
            named = result.get("dataset", {}).get("name") and result.get("task", {}).get("type")
            values = [metric.get("value") for metric in result.get("metrics", [])]
            if not named or not values or any(not isinstance(value, int | float) for value in values):
                faults.append(f"README.md: a result of model-index lacks task, dataset or a number: {result}")
    return faults
