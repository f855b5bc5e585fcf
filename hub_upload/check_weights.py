"""Whether the weight files of a staged folder are whole, safetensors, and nothing but weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OPTIMIZER_TENSOR = re.compile(r"(?:^|\.)(?:optimizer|exp_avg|exp_avg_sq|momentum_buffer|fp32_master)(?:\.|$)")


def check_weights(folder: Path) -> list[str]:
    """Faults of the safetensors files: unreadable, incomplete, twice the same tensor, or an optimizer's."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return [f"no weights: neither {SINGLE} nor {INDEX} with its shards"]
    tensors: dict[str, list[str]] = {}
    faults = []
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                tensors[path.name] = list(file.keys())
        except (SafetensorError, OSError) as error:
            faults.append(f"{path.name} is not safetensors ({error})")
    names = Counter(name for found in tensors.values() for name in found)
    faults += [f"the tensor {name} is in {count} files" for name, count in names.items() if count > 1]
    faults += [f"the tensor {name} is an optimizer's" for name in names if OPTIMIZER_TENSOR.search(name)]
    return faults + (_index_faults(folder, tensors) if not faults else [])


def _index_faults(folder: Path, tensors: dict[str, list[str]]) -> list[str]:
    path = folder / INDEX
    if not path.is_file():
        extra = sorted(set(tensors) - {SINGLE})
        return [f"{name} is there, but no {INDEX} names it" for name in extra]
    try:
        wanted: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{INDEX} is damaged ({error!r})"]
    found = {name: file for file, names in tensors.items() for name in names}
    missing = sorted(set(wanted.items()) - set(found.items()))
    extra = sorted(set(found.items()) - set(wanted.items()))
    return [f"{INDEX} puts {name} into {file}, where it is not" for name, file in missing[:5]] + [
        f"{file} holds {name}, which {INDEX} does not put there" for name, file in extra[:5]
    ]
