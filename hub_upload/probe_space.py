"""Builds the page of a staged Space as its own process would, without a model. It stands alone, as probe.py.

python probe_space.py --folder build/space
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any


def find_faults(folder: str) -> list[str]:
    """What keeps the page from being built, and examples that cannot be read."""
    sys.path.insert(0, folder)
    app, room = importlib.import_module("app"), importlib.import_module("room")
    faults = [
        f"{name} cannot be shown: it has no cameras" for name in room.example_names() if not _has_cameras(room, name)
    ]
    if not room.example_names():
        faults.append("there is no example room")
    if not app.model_name():
        faults.append("model.txt names no model")
    visitors = app.Visitors()
    try:
        app.build(app.Host(None, visitors))
    finally:
        visitors.close()
    return faults


def _has_cameras(room: Any, name: str) -> bool:
    return room.read_example(name).has_cameras


def main() -> None:
    """Prints one line of JSON: {"faults": [...], "versions": {...}}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--packages", help="folder of packages that come before the installed ones")
    args = parser.parse_args()
    if args.packages:
        sys.path.insert(0, args.packages)
    import gradio

    faults = find_faults(args.folder)
    versions = {"python": sys.version.split()[0], "gradio": gradio.__version__}
    print(json.dumps({"faults": faults, "versions": versions}))


if __name__ == "__main__":
    main()
