"""Makes the example rooms of the Space from a dataset of procedural rooms: few views, small files.

python -m datasets_scripts.build --source rooms --output build/example-rooms --scenes 4 --heldout 6 --size 336
python -m hub_upload.space_examples --dataset build/example-rooms --names bedroom kitchen study
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import SceneDataset, SceneExample

OUTPUT = Path(__file__).with_name("space") / "examples"
NUM_VIEWS = 4
DEPTH_SIDE, JPEG_QUALITY = 112, 82
MILLIMETRES = 1000.0
DIGITS = 6


def write_example(example: SceneExample, folder: Path) -> None:
    """Writes views/N.jpg, depth/N.png (16 bits, millimetres) and cameras.json.

    Raises:
        ValueError: a scene without cameras or depth.
    """
    if example.world_from_cam is None or example.depth is None:
        raise ValueError(f"scene {example.scene_id} has no cameras or no depth: take procedural rooms")
    for kind in ("views", "depth"):
        (folder / kind).mkdir(parents=True)
    for index, (image, depth) in enumerate(zip(example.images, example.depth)):
        image.save(folder / "views" / f"{index}.jpg", quality=JPEG_QUALITY)
        stride = max(1, max(depth.shape) // DEPTH_SIDE)
        small = depth[stride // 2 :: stride, stride // 2 :: stride]
        Image.fromarray(np.round(small * MILLIMETRES).astype(np.uint16)).save(folder / "depth" / f"{index}.png")
    cameras = {
        "intrinsics": example.intrinsics.round(DIGITS).tolist(),
        "world_from_cam": example.world_from_cam.round(DIGITS).tolist(),
    }
    (folder / "cameras.json").write_text(json.dumps(cameras, indent=1) + "\n", encoding="utf-8")


def write_examples(dataset: str, names: Sequence[str], output: Path = OUTPUT) -> list[Path]:
    """Writes the first rooms of the test split under these names, replacing older ones; returns their folders."""
    scenes = SceneDataset([dataset], "test", NUM_VIEWS)
    chosen = sorted({scene for _, _, scene, *_ in scenes.samples})
    shutil.rmtree(output, ignore_errors=True)
    folders = []
    for name, scene in zip(names, chosen, strict=False):
        frames = scenes.read_scene(scene).frame_ids
        spread = [frames[index * len(frames) // NUM_VIEWS] for index in range(NUM_VIEWS)]
        folders.append(output / name)
        write_example(scenes.read_scene(scene, spread), folders[-1])
    return folders


def main(argv: list[str] | None = None) -> None:
    """Writes the examples of the command line's dataset."""
    parser = argparse.ArgumentParser(prog="python -m hub_upload.space_examples", description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", required=True, help="built dataset of procedural rooms")
    parser.add_argument("--names", nargs="+", required=True, help="what to call the rooms, one after another")
    options = parser.parse_args(argv)
    for folder in write_examples(options.dataset, options.names):
        print(folder)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
