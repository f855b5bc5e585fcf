"""The procedural rooms as a source of `datasets_scripts.build`."""

import argparse
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets_scripts.rooms.actions import instruction_rows, instructions
from datasets_scripts.rooms.questions import candidates, question_rows, select, visible_objects
from datasets_scripts.rooms.render import count_pixels, render_batch
from datasets_scripts.rooms.room import generate_room, room_rng
from datasets_scripts.rooms.scene import Room
from datasets_scripts.schema import file_sha256

_MIN_CHUNK = 16  # rooms
_MAX_CHUNKS = 256
_BATCH = {"cpu": 4, "cuda": 64}  # rooms rendered together; several processes share a GPU and wait for its launches
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Chunk:
    """Rooms [start, stop) of a split ("train" or "heldout"): the unit of work of one process."""

    split: str
    start: int
    stop: int

    @property
    def num_scenes(self) -> int:
        """Number of scenes the chunk gives."""
        return self.stop - self.start


@dataclass(frozen=True)
class RoomsSource:
    """Procedural rooms: `scenes` for training and `heldout` others, whose even numbers are val and odd ones test."""

    scenes: int
    heldout: int
    views: int = 8
    size: int = 112
    seed: int = 0
    questions_per_scene: int = 12
    actions_per_scene: int = 4
    dense_labels: bool = False
    device: str = "cpu"
    channels: str = "rgb"

    name = "rooms"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the options of this source to the build's command line."""
        group = parser.add_argument_group("rooms")
        group.add_argument("--scenes", type=int, default=200, help="training rooms")
        group.add_argument("--heldout", type=int, help="held-out rooms, half val and half test (a tenth of --scenes)")
        group.add_argument("--views", type=int, default=8, help="photographs a room")
        group.add_argument("--size", type=int, default=112, help="width and height of the photographs in pixels")
        group.add_argument("--seed", type=int, default=0, help="another seed gives other rooms")
        group.add_argument("--questions-per-scene", type=int, default=12)
        group.add_argument("--actions-per-scene", type=int, default=4)
        group.add_argument("--dense-labels", action="store_true", help="also store what every pixel shows")
        group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the rooms are rendered")
        group.add_argument(
            "--channels", choices=("rgb", "bgr"), default="rgb", help="bgr: red and blue exchanged, rooms to adapt to"
        )

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> "RoomsSource":
        """Return the source that the command line asks for. Raises ValueError naming every option out of range."""
        heldout = max(2, args.scenes // 10) if args.heldout is None else args.heldout
        bounds = {"scenes": (1, 10**6), "views": (1, 64), "size": (28, 2048), "seed": (0, 2**31)}
        bounds |= {"questions_per_scene": (0, 100), "actions_per_scene": (0, 100)}
        faults = [
            f"--{name.replace('_', '-')} is {getattr(args, name)}, wanted {low} to {high}"
            for name, (low, high) in bounds.items()
            if not low <= getattr(args, name) <= high
        ]
        if not 0 <= heldout <= 10**6:
            faults.append(f"--heldout is {heldout}, wanted 0 to {10**6}")
        if args.questions_per_scene == args.actions_per_scene == 0:
            faults.append("--questions-per-scene and --actions-per-scene are both 0: nothing would be asked")
        if faults:
            raise ValueError("; ".join(faults))
        names = (
            "scenes",
            "views",
            "size",
            "seed",
            "questions_per_scene",
            "actions_per_scene",
            "dense_labels",
            "device",
            "channels",
        )
        return RoomsSource(heldout=heldout, **{name: getattr(args, name) for name in names})

    def options(self) -> dict[str, Any]:
        """Return everything that the rows depend on besides the code."""
        return asdict(self)

    def source_files(self) -> dict[str, str]:
        """Return the sha256 of each file that makes the rooms: this package."""
        folder = Path(__file__).parent
        return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.suffix in (".py", ".json")}

    def chunks(self) -> list[Chunk]:
        """Split the work; the split depends on the number of rooms alone."""
        chunks = []
        for split, count in (("train", self.scenes), ("heldout", self.heldout)):
            step = max(_MIN_CHUNK, -(-count // _MAX_CHUNKS))
            chunks += [Chunk(split, start, min(start + step, count)) for start in range(0, count, step)]
        return chunks

    def rows(self, chunk: Chunk) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield ("scenes/<split>" or "samples/<split>", row), the scene before its samples."""
        for start in range(chunk.start, chunk.stop, _BATCH[self.device]):
            numbers = range(start, min(start + _BATCH[self.device], chunk.stop))
            rooms = [generate_room(self.seed, chunk.split, number, self.views) for number in numbers]
            rendered = render_batch(rooms, self.device, size=self.size)
            pixels = count_pixels(rooms, rendered["instances"])
            rendered = {key: value.cpu() for key, value in rendered.items()}
            if self.channels == "bgr":
                rendered["images"] = rendered["images"].flip(2)  # [rooms, views, channels, height, width]
            for index, (number, room) in enumerate(zip(numbers, rooms)):
                yield f"scenes/{chunk.split}", scene_row(room, {key: value[index] for key, value in rendered.items()})
                if self.dense_labels:
                    yield f"labels/{chunk.split}", label_row(room, rendered["instances"][index].numpy())
                table = "samples/train" if chunk.split == "train" else f"samples/{('val', 'test')[number % 2]}"
                for row in self.samples(room, chunk.split, number, pixels[index]):
                    yield table, row

    def samples(self, room: Room, split: str, number: int, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Return questions and instructions about a room as rows of the schema.

        pixels [V, ids]: the pixels of every instance id in each view, from `count_pixels`.
        """
        rng = room_rng(self.seed, split, number, "questions")
        visible = visible_objects(pixels[:, : len(room.objects) + 1], self.size)
        chosen = select(candidates(room, visible, rng), self.questions_per_scene, rng)
        rows = question_rows(room, chosen, rng)
        rng = room_rng(self.seed, split, number, "actions")
        return rows + instruction_rows(room, instructions(room, pixels, self.size, self.actions_per_scene, rng))


def scene_row(room: Room, rendered: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return a room and its rendered views (one room's slice of `render_batch`) as a row of the schema."""
    world_from_cam = room.world_from_cam
    return {
        "scene_id": room.room_id,
        "room_id": room.room_id,
        "source": "rooms",
        "frame_ids": room.frame_ids,
        "images": [_jpeg(image) for image in rendered["images"].permute(0, 2, 3, 1).numpy()],
        "intrinsics": [rendered["intrinsics"].numpy()] * len(world_from_cam),
        "world_from_cam": list(world_from_cam),
        "depth": [_depth_png(depth) for depth in rendered["depth"].numpy()],
        "is_metric": True,
        "is_gravity_aligned": True,
        "world_from_source": room.world_from_room,
    }


def label_row(room: Room, instances: np.ndarray) -> dict[str, Any]:
    """Return what the pixels of a room's views show, as a row of LABEL_FEATURES; instances int16 [V, H, W]."""
    boxes = [room.object_target(item) for item in room.objects] + [room.wall_target(wall) for wall in room.walls]
    colors = [item.color for item in room.objects] + [None] * len(room.walls)
    things = [{**box, "color": color, "axes": np.ravel(box["axes"]).tolist()} for box, color in zip(boxes, colors)] + [
        {"label": label, "kind": None, "color": None, "center": [], "size": [], "axes": []}
        for label in ("floor", "ceiling")
    ]
    return {
        "scene_id": room.room_id,
        "instances": [_png(view.astype(np.uint8)) for view in instances],
        "things": things,
    }


def _jpeg(image: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return {"bytes": buffer.getvalue(), "path": None}


def _depth_png(depth: np.ndarray) -> dict[str, Any]:
    return _png(np.clip(np.rint(depth * 1000), 0, 65535).astype(np.uint16))


def _png(values: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=4)
    return {"bytes": buffer.getvalue(), "path": None}
