"""Coverage of the choices of views, speed of the build and of the training loader, as tables and as JSON.

    python -m benchmarks.bench_data
    python -m benchmarks.bench_data --parts coverage --rgbd 7scenes/redkitchen --gravity 0.0,0.9,0.4
    python -m benchmarks.bench_data --parts loader --workers 1,2 --questions 32

Everything is made here from procedural rooms: a walk through each, photographed as a hand-held capture would be. A
folder of a real RGB-D sequence (photographs, depth and poses as photos.py reads them) adds a row to the coverage table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from datasets_scripts import views
from datasets_scripts.build import build
from datasets_scripts.choose import ViewOptions
from datasets_scripts.photos import parse_gravity, read_photos
from datasets_scripts.rooms.render import render_batch
from datasets_scripts.rooms.room import generate_room
from datasets_scripts.rooms.scene import Room, room_from_cam
from datasets_scripts.sources import ScanNetSource
from tests.layouts import Truth, scanqa_record, write_posed_images, write_scanqa
from training.assembly import build_processor, read_config
from training.collator import SceneCollator
from training.data import SceneBatchSampler, SceneDataset

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "configs" / "models" / "vggt-1b-qwen3-4b.json"
TOKENIZER = REPOSITORY / "configs" / "tokenizer-tiny"
PARTS = ("coverage", "build", "loader")
WALL_DISTANCE_M, EYE_M = 0.8, 1.5
RENDER_SIDE = 112
WARM_UP_BATCHES = 4
Table = list[dict[str, Any]]


# ------------------------------------------------------------------------------------------------------------- coverage


def walk(room: Room, num_frames: int, seed: int) -> Room:
    """The room photographed on one round along its walls, looking across it and back, as hand-held captures do."""
    rng = np.random.default_rng([seed, num_frames])
    inner = shapely.Polygon(room.polygon).buffer(-WALL_DISTANCE_M)
    inner = max(getattr(inner, "geoms", [inner]), key=lambda part: part.area)
    round_trip, middle = inner.exterior, np.array(inner.centroid.coords[0])
    cameras = []
    for index in range(num_frames):
        share = index / num_frames
        position = np.array(round_trip.interpolate(share, normalized=True).coords[0])
        across = middle - position
        swing = 0.9 * np.sin(2 * np.pi * 5 * share) + rng.normal(0, 0.03)
        yaw = np.arctan2(-across[0], across[1]) + swing
        pitch = -0.25 + 0.2 * np.sin(2 * np.pi * 3 * share) + rng.normal(0, 0.02)
        cameras.append(room_from_cam(np.array([*position, EYE_M]), yaw, pitch))
    return replace(room, room_from_cam=np.stack(cameras))


def photographed_walk(index: int, num_frames: int) -> Truth:
    """The frames of one walk."""
    room = walk(generate_room(7, "train", index), num_frames, index)
    rendered = {key: value[0].numpy() for key, value in render_batch([room], size=RENDER_SIDE, antialias=False).items()}
    images = np.ascontiguousarray(rendered["images"].transpose(0, 2, 3, 1))
    return Truth(images, rendered["depth"], rendered["intrinsics"], rendered["world_from_cam"], [])


def shares_of(
    depth_m: Sequence[np.ndarray],
    intrinsics: Sequence[np.ndarray],
    world_from_cam: np.ndarray,
    images: Sequence[Image.Image],
    num_views: int,
) -> dict[str, float]:
    """Share of the places seen by any frame that the chosen ones see, for each way of choosing them.

    Choices look at frames as the build does; shares are those of all pixels.
    """
    everything = [
        views.depth_voxels(*frame, grid=max(frame[0].shape)) for frame in zip(depth_m, intrinsics, world_from_cam)
    ]
    seen = [views.depth_voxels(*frame) for frame in zip(depth_m, intrinsics, world_from_cam)]
    frusta = [views.frustum_voxels(k, i.size, c) for k, i, c in zip(intrinsics, images, world_from_cam)]
    small = [np.asarray(image.convert("L").resize((160, 160 * image.height // image.width))) for image in images]
    sharp = [views.sharpness(grey) for grey in small]
    count = len(seen)
    choices = {
        "first": views.first(count, num_views),
        "uniform": views.uniform(count, num_views),
        "coverage, cameras only": views.coverage(frusta, num_views, world_from_cam=world_from_cam, sharpness=sharp),
        "coverage": views.coverage(seen, num_views, world_from_cam=world_from_cam, sharpness=sharp),
    }
    return {name: views.share_seen(everything, chosen) for name, chosen in choices.items()}


def bench_coverage(args: argparse.Namespace) -> Table:
    shares = []
    for index in range(args.rooms):
        truth = photographed_walk(index, args.frames)
        images = [Image.fromarray(image) for image in truth.images]
        intrinsics = [truth.intrinsics] * len(truth)
        shares.append(shares_of(truth.depth_m, intrinsics, truth.world_from_cam, images, args.views))
    label = f"{args.rooms} rooms, walks of {args.frames} frames"
    rows = [{"scenes": label} | {name: float(np.mean([share[name] for share in shares])) for name in shares[0]}]
    rows.append({"scenes": "worst room"} | {name: min(share[name] for share in shares) for name in shares[0]})
    if args.rgbd:
        scene = read_photos(args.rgbd, gravity=parse_gravity(args.gravity))
        share = shares_of(scene.depth, scene.intrinsics, scene.world_from_cam, scene.images, args.views)
        rows.append({"scenes": f"{args.rgbd.name}, {len(scene.images)} frames"} | share)
    return rows


# ---------------------------------------------------------------------------------------------------------------- build


def write_raw(root: Path, args: argparse.Namespace) -> None:
    """ScanNet scenes as posed_images: photographs of `--side` pixels with sensor noise, and their questions."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(args.scenes):
        scene_id = f"scene{index:04d}_00"
        write_posed_images(root, scene_id, enlarged(photographed_walk(index, args.candidates), args.side, rng))
        questions = range(args.questions)
        records += [
            scanqa_record(f"train-{scene_id}-{n}", scene_id, f"What is thing {n}?", ["chair"]) for n in questions
        ]
    write_scanqa(root / "ScanQA_v1.0_train.json", records)


def enlarged(truth: Truth, side: int, rng: np.random.Generator) -> Truth:
    """The same views at `side` pixels, with noise so that they compress as photographs do; depth at half that."""
    scale = side / RENDER_SIDE
    images = []
    for image in truth.images:
        large = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        images.append((large + rng.normal(0, 6, large.shape)).clip(0, 255).astype(np.uint8))
    near = ((np.arange(side // 2) + 0.5) * 2 / scale).astype(int)
    intrinsics = np.diag([scale, scale, 1.0]) @ truth.intrinsics
    return Truth(np.stack(images), truth.depth_m[:, near][:, :, near], intrinsics, truth.world_from_cam, [])


def bench_build(raw: Path, output: Path, args: argparse.Namespace) -> Table:
    rows = []
    qa = (("scanqa", None, raw / "ScanQA_v1.0_train.json"),)
    for num_proc in args.workers:
        root = output / f"built-{num_proc}"
        source = ScanNetSource(root=raw, views=ViewOptions(num_views=args.stored), qa=qa)
        start = time.perf_counter()
        build(source, root, num_proc=num_proc, progress=False)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in root.rglob("*.arrow"))
        rows.append(
            {
                "processes": num_proc,
                "scenes/s": args.scenes / seconds,
                "views/s": args.scenes * args.stored / seconds,
                "MB a scene": size / args.scenes / 1e6,
            }
        )
    return rows


# --------------------------------------------------------------------------------------------------------------- loader


def bench_loader(root: Path, args: argparse.Namespace) -> Table:
    """Samples a second of the loader alone (views decoded) and with the processor, grouped by scene and one by one."""
    config = read_config(str(MODEL))
    processor = build_processor(config, AutoTokenizer.from_pretrained(str(TOKENIZER)), args.image_size)
    dataset = SceneDataset([root], "train", num_views=args.views)
    collate = {"decoded": _examples, "tensors": SceneCollator(processor, config.task_names)}
    rows: Table = []
    for stage, collator in collate.items():
        for workers in args.workers:
            speeds = {}
            for name, group in (("one by one", 1), (f"{args.questions} a scene", args.questions)):
                sampler = SceneBatchSampler(dataset, args.questions, group, seed=0)
                loader = DataLoader(
                    dataset, batch_sampler=sampler, collate_fn=collator, num_workers=workers, persistent_workers=True
                )
                speeds[name] = args.questions * batches_per_second(loader, args.seconds)
            slow, fast = speeds.values()
            rows.append({"stage": stage, "workers": workers, **speeds, "ratio": fast / slow})
    return rows


def batches_per_second(loader: DataLoader, seconds: float) -> float:
    """Steady rate over about `seconds`, epoch after epoch, the first batches left out."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - start)


def _examples(examples: list[Any]) -> list[int]:
    """Nothing but the number of views: decoded images need not travel between processes to be counted."""
    return [len(example.images) for example in examples]


# ------------------------------------------------------------------------------------------------------------- printing


def show(title: str, rows: Table) -> None:
    print(f"\n{title}")
    texts = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(text[column]) for text in texts) for column in range(len(texts[0]))]
    for text in texts:
        print("  ".join(f"{word:>{width}}" for word, width in zip(text, widths)))


def _text(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value:.3f}"
        if isinstance(value, float) and value < 2
        else f"{value:.0f}"
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Coverage of views, speed of build and loader.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--rooms", type=int, default=8, help="rooms of the coverage table")
    parser.add_argument("--frames", type=int, default=96, help="frames of a walk in the coverage table")
    parser.add_argument("--views", type=int, default=8, help="views chosen for the table, drawn by the loader")
    parser.add_argument("--rgbd", type=Path, help="folder of a real RGB-D sequence")
    parser.add_argument(
        "--gravity", default="0,-1,0", help="x,y,z in which things fall there, or a file of three numbers"
    )
    parser.add_argument("--scenes", type=int, default=6, help="scenes built")
    parser.add_argument("--candidates", type=int, default=40, help="frames of each of them")
    parser.add_argument("--stored", type=int, default=32, help="views stored of each")
    parser.add_argument("--side", type=int, default=968, help="pixels of their photographs")
    parser.add_argument("--questions", type=int, default=16, help="questions a scene, asked together")
    parser.add_argument("--image-size", type=int, default=448, help="pixels of the views the model gets")
    parser.add_argument("--workers", type=lambda text: [int(w) for w in text.split(",")], default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement of the loader")
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what the command line asks for, prints it and returns it."""
    args = parse_arguments(arguments)
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    if "coverage" in args.parts:
        figures["coverage"] = bench_coverage(args)
        show(f"share of the room seen by {args.views} views", figures["coverage"])
    with tempfile.TemporaryDirectory() as folder:
        if {"build", "loader"} & set(args.parts):
            write_raw(Path(folder) / "raw", args)
            figures["build"] = bench_build(Path(folder) / "raw", Path(folder), args)
            title = (
                f"build: {args.candidates} frames of {args.side} pixels a scene, {args.stored} kept, chosen by coverage"
            )
            show(title, figures["build"])
        if "loader" in args.parts:
            figures["loader"] = bench_loader(Path(folder) / f"built-{args.workers[0]}", args)
            title = f"loader: samples/s, {args.views} of {args.stored} views; tensors at {args.image_size} pixels"
            show(title, figures["loader"])
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
