"""Draw one scene of a dataset folder: its photographs with the target boxes, a plan from above, its questions.

python -m datasets_scripts.show --dataset data/rooms --scene room-train-0-000000 --output sheet.png --glb room.glb
python -m datasets_scripts.show --roomplan room.json --output plan.png
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from PIL import Image, ImageDraw, ImageFont

from datasets_scripts.boxes import EDGES, box_corners, footprint
from datasets_scripts.capture import Skips
from datasets_scripts.glb import write_glb
from datasets_scripts.roomplan import read_roomplan
from datasets_scripts.schema import SAMPLE_SPLITS, SCENE_SPLITS, read_manifest
from processing.geometry_vggt_qwen3 import invert_rigid, transform_points

_TILE, _COLUMNS, _PLAN = 240, 4, 640
_MARGIN_M, _BEYOND_M = 0.4, 2.0
_NEAR_M = 0.05
_MAX_LINES = 22
_INK, _PAPER, _CAMERA = (30, 30, 34), (250, 250, 248), (20, 90, 200)
_PALETTE = [(230, 57, 70), (29, 130, 84), (244, 140, 6), (123, 44, 191), (0, 119, 182), (216, 17, 89), (106, 76, 40)]

Target = dict[str, Any]


def load_scene(root: Path, scene_id: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the row of a scene (the first one if `scene_id` is None) and its samples.

    Raises NotADatasetError for a folder without a manifest and ValueError for an unknown scene.
    """
    read_manifest(root)
    for split in SCENE_SPLITS:
        scenes = _table(root / "scenes" / split)
        if scenes is None:
            continue
        ids = scenes["scene_id"][:]
        if scene_id is None or scene_id in ids:
            row = scenes[0 if scene_id is None else ids.index(scene_id)]
            return row, _samples_of(root, row["scene_id"])
    raise ValueError(f"{root} holds no scene {scene_id!r}")


def _table(folder: Path) -> Dataset | None:
    return load_from_disk(str(folder)) if folder.is_dir() else None


def _samples_of(root: Path, scene_id: str) -> list[dict[str, Any]]:
    found = []
    for split in SAMPLE_SPLITS:
        samples = _table(root / "samples" / split)
        if samples is not None:
            rows = np.flatnonzero(np.array(samples["scene_id"][:]) == scene_id)
            found += [samples[int(row)] for row in rows]
    return found


def load_roomplan(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a RoomPlan export as a scene without views, and its items as the targets of one sample.

    Raises SourceError for a file that is no such export.
    """
    targets = read_roomplan(path, Skips(strict=True)).targets()
    cameras = {key: None for key in ("intrinsics", "depth", "world_from_source")}
    scene = {"scene_id": path.stem, "frame_ids": [], "images": [], "world_from_cam": [], **cameras}
    counts = Counter(target["label"] for target in targets)
    listed = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    sample = {"action": None, "answers": [listed], "situation": None, "question": path.name, "targets": targets}
    return scene, [sample]


def shown_targets(samples: Sequence[dict[str, Any]]) -> tuple[list[Target], list[tuple[int, ...]]]:
    """Return every box of the actions once, or of the questions if there are none, and the colour of each."""
    acting = [sample for sample in samples if sample["action"]] or samples
    told = [target for sample in acting for target in sample["targets"]]
    targets = list({str([t["label"], t["center"], t["size"]]): t for t in told}.values())
    return targets, [_PALETTE[i % len(_PALETTE)] for i in range(len(targets))]


def contact_sheet(scene: dict[str, Any], samples: Sequence[dict[str, Any]]) -> Image.Image:
    """Return the picture of a scene; boxes are those of its actions, or of its questions if it has none."""
    targets, colors = shown_targets(samples)
    views = [_view(scene, index, targets, colors) for index in range(len(scene["frame_ids"]))]
    rows = -(-len(views) // _COLUMNS)
    top = rows * _TILE
    sheet = Image.new("RGB", (_COLUMNS * _TILE, top + _PLAN), _PAPER)
    for index, view in enumerate(views):
        sheet.paste(view, (index % _COLUMNS * _TILE, index // _COLUMNS * _TILE))
    text_left = 10
    if scene["world_from_cam"] is not None:
        sheet.paste(_plan(scene, targets, colors), (0, top))
        text_left += _PLAN
    _write_samples(ImageDraw.Draw(sheet), samples, (text_left, top + 10), sheet.width)
    return sheet


def _view(scene: dict[str, Any], index: int, targets: list[Target], colors: list[tuple[int, ...]]) -> Image.Image:
    image = scene["images"][index].convert("RGB")
    scale = min(_TILE / image.width, _TILE / image.height)
    tile = Image.new("RGB", (_TILE, _TILE), _INK)
    tile.paste(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(tile)
    if scene["world_from_cam"] is not None:
        cam_from_world = invert_rigid(np.array(scene["world_from_cam"][index]))
        intrinsics = np.array(scene["intrinsics"][index])
        for target, color in zip(targets, colors):
            corners = transform_points(cam_from_world, box_corners(target))
            for a, b in EDGES:
                segment = _in_front(corners[a], corners[b])
                if segment is not None:
                    pixels = segment @ intrinsics.T
                    line = pixels[:, :2] / pixels[:, 2:] * scale
                    draw.line([tuple(point) for point in line.clip(-4 * _TILE, 5 * _TILE)], color, 2)
    draw.text((4, 2), scene["frame_ids"][index], _PAPER, _font(12), stroke_width=2, stroke_fill=_INK)
    return tile


def _in_front(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Return the part [2, 3] of a segment in front of the camera, None if there is none."""
    if max(a[2], b[2]) <= _NEAR_M:
        return None
    if a[2] < _NEAR_M:
        a = b + (a - b) * (b[2] - _NEAR_M) / (b[2] - a[2])
    elif b[2] < _NEAR_M:
        b = a + (b - a) * (a[2] - _NEAR_M) / (a[2] - b[2])
    return np.stack([a, b])


def _plan(scene: dict[str, Any], targets: list[Target], colors: list[tuple[int, ...]]) -> Image.Image:
    """Draw the scene from above: what the depth images saw below the ceiling, the targets, the cameras."""
    cameras = np.array(scene["world_from_cam"]).reshape(-1, 4, 4)
    points, shades = seen_points(scene, cameras)
    outlines = [np.array(footprint(target)) for target in targets]
    straight = [target for target in targets if target["kind"] == "plane"] or targets  # along the walls
    axis = np.array(straight[0]["axes"])[0] if straight else np.array([1.0, 0.0, 0.0])
    turn = np.array([[axis[0], axis[1]], [-axis[1], axis[0]]])
    seen = np.concatenate([points[:, :2], cameras[:, :2, 3]])
    if len(seen):  # a box far away shrinks nothing
        shown = [outline.clip(seen.min(0) - _BEYOND_M, seen.max(0) + _BEYOND_M) for outline in outlines]
    else:
        shown = outlines
    flat = np.concatenate([seen, *shown]) @ turn.T
    low, high = flat.min(0) - _MARGIN_M, flat.max(0) + _MARGIN_M
    scale = _PLAN / float((high - low).max())

    def place(world: np.ndarray) -> np.ndarray:
        offset = (np.asarray(world) @ turn.T - low) * scale
        return np.stack([offset[:, 0], _PLAN - 1 - offset[:, 1]], axis=1)

    canvas = np.full((_PLAN, _PLAN, 3), _PAPER, dtype=np.uint8)
    order = np.argsort(points[:, 2], kind="stable")
    columns, rows = place(points[order, :2]).astype(np.int64).clip(1, _PLAN - 2).T
    for step in np.ndindex(3, 3):
        canvas[rows + step[0] - 1, columns + step[1] - 1] = shades[order]
    plan = Image.fromarray(canvas)
    draw = ImageDraw.Draw(plan)
    for target, outline, color in zip(targets, outlines, colors):
        draw.polygon([tuple(point) for point in place(outline)], outline=color, width=3)
        middle = place(outline.mean(0, keepdims=True))[0]
        draw.text(tuple(middle), target["label"], color, _font(13), "mm", stroke_width=3, stroke_fill=_PAPER)
    for frame, pose in zip(scene["frame_ids"], cameras):
        tip = pose[:2, 3] + 0.35 * pose[:2, 2]
        start, end = place(np.stack([pose[:2, 3], tip]))
        draw.line([tuple(start), tuple(end)], _CAMERA, 3)
        draw.ellipse([*(start - 5), *(start + 5)], _CAMERA)
        draw.text(tuple(start + 7), frame, _CAMERA, _font(12), stroke_width=2, stroke_fill=_PAPER)
    return plan


def seen_points(scene: dict[str, Any], cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return world points [N, 3] of all depth images up to a little above the cameras, and their colours [N, 3]."""
    if scene["depth"] is None:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.uint8)
    ceiling = cameras[:, 2, 3].max() + 0.3
    points, shades = [], []
    for image, depth, intrinsics, camera in zip(scene["images"], scene["depth"], scene["intrinsics"], cameras):
        metres = np.asarray(depth, dtype=np.float64) / 1000
        height, width = metres.shape
        y, x = np.nonzero(metres)
        step = max(1, len(y) // 60_000)
        y, x = y[::step], x[::step]
        pixels = np.stack([(x + 0.5) * image.width / width, (y + 0.5) * image.height / height, np.ones(len(x))])
        rays = (np.linalg.inv(np.array(intrinsics)) @ pixels).T
        world = transform_points(camera, rays * metres[y, x, None])
        kept = world[:, 2] < ceiling
        points.append(world[kept])
        shades.append(np.asarray(image.convert("RGB").resize((width, height)))[y, x][kept])
    return np.concatenate(points), np.concatenate(shades)


def _write_samples(
    draw: ImageDraw.ImageDraw, samples: Sequence[dict[str, Any]], corner: tuple[int, int], width: int
) -> None:
    lines, columns = [], (width - corner[0] - 10) // 6
    for sample in samples:
        reply = sample["answers"][0] if sample["answers"] else f"{sample['action'] or 'no label'}"
        text = " ".join(filter(None, [sample["situation"], sample["question"]]))
        lines += [*_wrapped(text, columns), *(f"    {line}" for line in _wrapped(reply, columns - 4))]
    for number, line in enumerate(lines[: 2 * _MAX_LINES]):
        color = _CAMERA if line.startswith("    ") else _INK
        draw.text((corner[0], corner[1] + 14 * number), line, color, _font(11))


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f"{word} "
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write_glb(path: Path, scene: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None:
    if scene["world_from_cam"] is None:
        raise ValueError(f"scene {scene['scene_id']} has no cameras: nothing can be placed in space")
    points, shades = seen_points(scene, np.array(scene["world_from_cam"]).reshape(-1, 4, 4))
    write_glb(path, points, shades, scene, *shown_targets(samples))


def main(arguments: list[str] | None = None) -> int:
    """Write the picture that the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw one scene: views with target boxes, plan, questions.")
    parser.add_argument("--dataset", type=Path, default=Path("data/rooms"), help="dataset folder")
    parser.add_argument("--scene", help="scene_id; the first scene if left out")
    parser.add_argument("--roomplan", type=Path, help="a RoomPlan export to draw instead")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help="PNG to write")
    parser.add_argument("--glb", type=Path, help="GLB of points, cameras and boxes to write, too")
    args = parser.parse_args(arguments)
    try:
        scene, samples = load_roomplan(args.roomplan) if args.roomplan else load_scene(args.dataset, args.scene)
        contact_sheet(scene, samples).save(args.output)
        if args.glb:
            _write_glb(args.glb, scene, samples)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output}: {scene['scene_id']}, {len(scene['frame_ids'])} views, {len(samples)} samples")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
