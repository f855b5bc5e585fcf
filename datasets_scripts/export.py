"""Writes one scene of a built dataset as a plain folder of photographs, with its cameras and depth beside them.

    python -m datasets_scripts.export --dataset data/rooms --scene room-val-0-000000 --output photos/

`<frame>.jpg`, `<frame>.depth.png` and a `transforms.json` of NeRF tools (OpenGL camera axes, metres, Z up): what
`eval.py --images` reads, with `--gravity 0,0,-1 --scale 1`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

from .photos import CV_FROM_GL_CAM, TRANSFORMS_NAME
from .schema import SCENE_SPLITS, read_manifest


def find_scene(root: str | Path, scene_id: str | None = None) -> dict[str, Any]:
    """One row of the scene table, images encoded; without an id the first held-out scene.

    Raises:
        NotADatasetError: for a folder without manifest.
        ValueError: for an unknown scene; names some that are there.
    """
    read_manifest(root)
    known: list[str] = []
    for split in reversed(SCENE_SPLITS):
        path = Path(root) / "scenes" / split
        if not path.is_dir():
            continue
        table: Dataset = load_from_disk(str(path))
        ids = table["scene_id"][:]
        known += ids
        if scene_id is None or scene_id in ids:
            row = 0 if scene_id is None else ids.index(scene_id)
            return table.with_format("arrow")[row].to_pylist()[0]  # decodes no image
    raise ValueError(f"{root} has no scene {scene_id}; among its {len(known)} are {', '.join(known[:5])}")


def export_scene(scene: dict[str, Any], output: str | Path) -> list[Path]:
    """Writes the files of a scene and returns the photographs.

    Raises:
        FileExistsError: where `output` holds something already.
    """
    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    photographs = []
    for index, frame_id in enumerate(scene["frame_ids"]):
        photographs.append(folder / f"{frame_id}.jpg")
        photographs[-1].write_bytes(scene["images"][index]["bytes"])
        if scene["depth"] is not None:
            (folder / f"{frame_id}.depth.png").write_bytes(scene["depth"][index]["bytes"])
    if scene["world_from_cam"] is not None:
        frames = [_frame(scene, index) for index in range(len(photographs))]
        (folder / TRANSFORMS_NAME).write_text(json.dumps({"camera_model": "PINHOLE", "frames": frames}, indent=1))
    return photographs


def _frame(scene: dict[str, Any], index: int) -> dict[str, Any]:
    frame_id = scene["frame_ids"][index]
    intrinsics = np.asarray(scene["intrinsics"][index], dtype=np.float64)
    frame = {
        "file_path": f"{frame_id}.jpg",
        "fl_x": intrinsics[0, 0],
        "fl_y": intrinsics[1, 1],
        "cx": intrinsics[0, 2],
        "cy": intrinsics[1, 2],
        "transform_matrix": (np.asarray(scene["world_from_cam"][index]) @ CV_FROM_GL_CAM).tolist(),
    }
    if scene["depth"] is not None:
        frame["depth_file_path"] = f"{frame_id}.depth.png"
    return frame


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Writes one scene of a dataset as a folder of photographs.")
    parser.add_argument("--dataset", required=True, help="built dataset folder")
    parser.add_argument("--scene", help="scene_id; default: the first held-out scene")
    parser.add_argument("--output", required=True, help="new folder")
    arguments = parser.parse_args(argv)
    scene = find_scene(arguments.dataset, arguments.scene)
    photographs = export_scene(scene, arguments.output)
    print(f"{scene['scene_id']}: {len(photographs)} photographs in {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
