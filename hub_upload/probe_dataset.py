"""Reads a staged dataset as a stranger would, by `load_dataset`, and counts its rows. It stands alone, as probe.py.

python probe_dataset.py --folder build/rooms --rows '{"scenes/train": 240}'
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def find_faults(folder: str, rows: dict[str, int]) -> list[str]:
    """What differs from the staged tables, and images that cannot be read."""
    import datasets
    from PIL import Image

    datasets.disable_progress_bars()
    faults = []
    for name, wanted in rows.items():
        table, split = name.split("/")
        dataset = datasets.load_dataset(folder, table, split=split)
        if len(dataset) != wanted:
            faults.append(f"{name} has {len(dataset)} rows, {wanted} were staged")
        if table == "scenes" and len(dataset):
            for index in (0, len(dataset) - 1):
                images = dataset[index]["images"]
                if not images or not all(isinstance(image, Image.Image) for image in images):
                    faults.append(f"{name}, row {index}: its views are not images")
    return faults


def main() -> None:
    """Prints one line of JSON: {"faults": [...], "versions": {...}}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--rows", required=True, type=json.loads)
    parser.add_argument("--packages", help="folder of packages that come before the installed ones")
    args = parser.parse_args()
    if args.packages:
        sys.path.insert(0, args.packages)
    import datasets

    faults = find_faults(str(Path(args.folder)), args.rows)
    versions = {"python": sys.version.split()[0], "datasets": datasets.__version__}
    print(json.dumps({"faults": faults, "versions": versions}))


if __name__ == "__main__":
    main()
