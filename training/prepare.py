"""Writes a dataset as arrays, every view decoded and every text tokenised once; `prepared.py` reads them."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets_scripts.rooms.catalogue import CLASSES
from datasets_scripts.rooms.materials import COLORS
from datasets_scripts.schema import ACTION_TASKS, TARGET_KINDS, read_manifest
from processing.action_vggt_qwen3 import action_from_targets, format_action
from processing.geometry_vggt_qwen3 import invert_rigid, ref_from_world, transform_points
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .data import SceneDataset

VERSION = 1
MARKER = "complete.json"
COLOR_NAMES = tuple(COLORS)
SURFACES = ("wall", "floor", "ceiling")
MAX_THINGS = 96
SURFACE_SHARE = 0.3
"""What a pixel of wall, floor or ceiling weighs beside one of a thing: small things seldom fill half a patch."""
_SCENES_AT_ONCE = 32
_MIN_FREE_BYTES = 2**30

logger = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]


def prepare(dataset: SceneDataset, processor: VggtQwen3Processor, cache: Path, num_proc: int | None = None) -> Path:
    """Folder of the prepared arrays below `cache`, made if it is not there; its marker is written last.

    Raises:
        ValueError: for scenes that differ in their number of views, lack cameras or depth, or hold dense labels of
            another image size than the model's; names the scene.
        OSError: where the disk cannot hold the arrays.
    """
    folder = cache / _key(dataset, processor)
    if (folder / MARKER).is_file():
        return folder
    job = _Job(dataset, processor)
    like = job.scene(0)
    _make_room(folder, len(dataset.scenes) * sum(array.nbytes for array in like.values()))
    logger.info("preparing %d scenes and %d samples in %s", len(dataset.scenes), len(dataset.samples), folder)
    for name, array in like.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, (len(dataset.scenes), *array.shape))
    texts = _join(_run(job, folder, num_proc or len(os.sched_getaffinity(0))))
    heads = texts.pop("heads")
    for name, array in texts.items():
        np.save(folder / f"text_{name}.npy", array)
    samples = [(table, row) for table, row, *_ in dataset.samples]
    made = {"scenes": list(like), "text": list(texts), "heads": heads, "samples": samples}
    (folder / MARKER).write_text(json.dumps(made), encoding="utf-8")
    return folder


def _key(dataset: SceneDataset, processor: VggtQwen3Processor) -> str:
    """Digest of all that the arrays depend on; the same whether the processor was just made or read from a folder."""
    images = {key: value for key, value in processor.image_processor.to_dict().items() if key != "auto_map"}
    parts = {
        "version": VERSION,
        "datasets": [read_manifest(root).fingerprint for root in dataset.roots],
        "split": dataset.split,
        "samples": [(table, row) for table, row, *_ in dataset.samples],
        "images": images,
        "tokenizer": processor.tokenizer.backend_tokenizer.to_str(),
        "wording": [_prompt(processor, "?", "!", task) for task in sorted({task for *_, task, _ in dataset.samples})],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _make_room(folder: Path, num_bytes: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _MIN_FREE_BYTES:
        raise OSError(
            f"{folder}: the prepared arrays take {num_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "name another folder by prepared_dir"
        )


def _prompt(processor: VggtQwen3Processor, question: str, situation: str | None, task: str) -> str:
    messages = processor.conversation(question, situation=situation, num_views=1, task=task)
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@dataclass
class _Job:
    """What the workers share."""

    dataset: SceneDataset
    processor: VggtQwen3Processor

    def __post_init__(self) -> None:
        self.samples_of: dict[int, list[int]] = {}
        for m, (_, _, scene, _, _) in enumerate(self.dataset.samples):
            self.samples_of.setdefault(scene, []).append(m)

    def scene(self, index: int) -> Arrays:
        """One scene's arrays, as `PreparedScenes` lists them."""
        example = self.dataset.read_scene(index)
        if example.world_from_cam is None or example.depth is None:
            raise ValueError(f"scene {example.scene_id} lacks cameras or depth: train on it without prepare_data")
        batch = self.processor(
            images=[example.images],
            intrinsics=[example.intrinsics],
            world_from_cam=[example.world_from_cam],
            depth=[example.depth],
            return_tensors="np",
        )
        cam_from_ref = invert_rigid(batch["ref_from_cam"][0].astype(np.float64))
        points = np.stack([transform_points(*pair) for pair in zip(cam_from_ref, batch["patch_points"][0])])
        arrays = {
            "pixels": batch["pixel_values"][0],
            "intrinsics": batch["intrinsics"][0],
            "world_from_cam": np.asarray(example.world_from_cam),
            "ref_from_world": np.stack([ref_from_world(camera) for camera in example.world_from_cam]),
            "points": points.astype(np.float32),
            "points_mask": batch["patch_points_mask"][0],
            "depth_hist": batch["depth_hist"][0],
        }
        labels = self.dataset.read_labels(index)
        if labels is not None:
            arrays |= self._dense(example, labels)
        return arrays

    def _dense(self, example: Any, labels: dict[str, Any]) -> Arrays:
        size = self.processor.image_processor.size.height
        views = [np.asarray(Image.open(view)) for view in labels["instances"]]
        if any(view.shape != (size, size) for view in views):
            raise ValueError(
                f"scene {example.scene_id} has dense labels of size {views[0].shape}, the model sees {size} x {size}; "
                f"build the dataset with --size {size}"
            )
        patch = self.processor.image_processor.patch_size
        depth = np.clip(np.rint(np.stack(example.depth) * 1000), 0, 32767).astype(np.int16)
        shares = np.array([1.0, *(SURFACE_SHARE if thing["label"] in SURFACES else 1.0 for thing in labels["things"])])
        shares = np.concatenate([shares, np.zeros(256 - len(shares))])
        patches = np.stack([_most_seen(view, patch, shares) for view in views])
        return {"depth_mm": depth, "patch_thing": patches, **_thing_table(labels["things"], example.scene_id)}

    def texts(self, start: int, stop: int) -> list[tuple[int, list[int], list[int], list[list[int]]]]:
        """(sample, head, tail, answers) of every sample of scenes [start, stop), as token lists."""
        chosen, rows, answers = [], [], []
        for scene in range(start, stop):
            samples = self.samples_of.get(scene, [])
            chosen += samples
            rows += (of_scene := self.dataset.samples_of_scene(samples))
            answers += self._answers(scene, of_scene)
        prompts = [_prompt(self.processor, row["question"], row["situation"], row["task"]) for row in rows]
        flat = self._tokens([text for texts in answers for text in texts])
        end = self.processor.end_of_turn_id
        out, used = [], 0
        for m, tokens, texts in zip(chosen, self._tokens(prompts), answers):
            place = tokens.index(self.processor.image_token_id)
            endings = [[*ids, end] for ids in flat[used : used + len(texts)]]
            used += len(texts)
            out.append((m, tokens[:place], tokens[place + 1 :], endings))
        return out

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.processor.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    def _answers(self, scene: int, rows: list[dict[str, Any]]) -> list[list[str]]:
        """The accepted answers of each sample; of an action its text as each view sees it, or as its anchor does."""
        cameras = self.dataset.scene_cameras(scene)
        frames = dict(zip(cameras["frame_ids"], map(ref_from_world, cameras["world_from_cam"])))
        answers = []
        for row in rows:
            if row["task"] not in ACTION_TASKS:
                answers.append(row["answers"])
                continue
            seen_from = frames.values() if row["anchor_frame_id"] is None else [frames[row["anchor_frame_id"]]]
            actions = (action_from_targets(row["action"], row["targets"], ref) for ref in seen_from)
            answers.append([format_action(action) for action in actions])
        return answers


def _most_seen(view: np.ndarray, patch: int, shares: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> the value that weighs most in each patch [P], row by row; shares [256] weigh a pixel."""
    rows, columns = (side // patch for side in view.shape)
    tiles = view.reshape(rows, patch, columns, patch).swapaxes(1, 2).reshape(rows * columns, -1)
    values = tiles + 256 * np.arange(len(tiles))[:, None]
    counts = np.bincount(values.ravel(), minlength=256 * len(tiles)).reshape(len(tiles), 256)
    return (counts * shares).argmax(1).astype(np.uint8)


def _thing_table(things: list[dict[str, Any]], scene_id: str) -> Arrays:
    if len(things) >= MAX_THINGS:
        raise ValueError(f"scene {scene_id} holds {len(things)} things, room is for {MAX_THINGS - 1}")
    table = {
        "thing_label": np.full(MAX_THINGS, -1, np.int8),
        "thing_color": np.full(MAX_THINGS, -1, np.int8),
        "thing_kind": np.full(MAX_THINGS, -1, np.int8),
        "thing_center": np.zeros((MAX_THINGS, 3), np.float32),
        "thing_size": np.zeros((MAX_THINGS, 3), np.float32),
        "thing_axes": np.zeros((MAX_THINGS, 2, 2), np.float32),
    }
    for index, thing in enumerate(things, start=1):  # row 0 = nothing
        table["thing_label"][index] = CLASSES.index(thing["label"])
        if thing["color"] is not None:
            table["thing_color"][index] = COLOR_NAMES.index(thing["color"])
        if thing["kind"] is not None:
            table["thing_kind"][index] = TARGET_KINDS.index(thing["kind"])
            table["thing_center"][index], table["thing_size"][index] = thing["center"], thing["size"]
            table["thing_axes"][index] = np.reshape(thing["axes"], (3, 3))[:2, :2]
    return table


def _run(job: _Job, folder: Path, num_proc: int) -> Iterator[list[Any]]:
    count = len(job.dataset.scenes)
    spans = [(start, min(start + _SCENES_AT_ONCE, count)) for start in range(0, count, _SCENES_AT_ONCE)]
    progress = tqdm(total=count, unit=" scenes", desc="preparing", mininterval=5)
    with progress:
        if num_proc == 1 or len(spans) == 1:
            for span in spans:
                yield _write(job, folder, span)
                progress.update(span[1] - span[0])
            return
        context = multiprocessing.get_context("forkserver")  # torch's threads do not survive a fork of this process
        context.set_forkserver_preload([__name__])  # else each worker's imports hold up the start of the next one
        # As an argument the job, which lists all samples, would start the workers one by one: it is handed over through
        # a pipe, and a worker reads it once its imports are done.
        shared = folder / "job.pickle"
        shared.write_bytes(pickle.dumps(job))
        with ProcessPoolExecutor(min(num_proc, len(spans)), context, _start_worker, (shared, folder)) as pool:
            for span, texts in zip(spans, pool.map(_work, spans)):
                yield texts
                progress.update(span[1] - span[0])
        shared.unlink()


_shared: tuple[_Job, Path] | None = None


def _start_worker(shared: Path, folder: Path) -> None:
    """Has a worker read the job once."""
    global _shared
    _shared = (pickle.loads(shared.read_bytes()), folder)
    torch.set_num_threads(1)


def _work(span: tuple[int, int]) -> list[Any]:
    return _write(*_shared, span)


def _write(job: _Job, folder: Path, span: tuple[int, int]) -> list[Any]:
    """Writes the arrays of scenes [start, stop) into place and returns their texts."""
    start, stop = span
    scenes = [job.scene(index) for index in range(start, stop)]
    for name in scenes[0]:
        file = np.load(folder / f"{name}.npy", mmap_mode="r+")
        wrong = [i for i, scene in enumerate(scenes) if scene[name].shape != file.shape[1:]]
        if wrong:
            raise ValueError(
                f"scene {start + wrong[0]} has {name} of shape {scenes[wrong[0]][name].shape}, the first one "
                f"{file.shape[1:]}: prepared scenes agree in their views; train on these without prepare_data"
            )
        file[start:stop] = [scene[name] for scene in scenes]
    return job.texts(start, stop)


def _join(parts: Iterator[list[Any]]) -> dict[str, Any]:
    """Token lists of all samples as flat arrays with offsets, and the few different beginnings."""
    rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    heads: dict[tuple[int, ...], int] = {}
    head_of = [heads.setdefault(tuple(head), len(heads)) for _, head, _, _ in rows]
    answers = [answer for *_, texts in rows for answer in texts]
    return {
        "heads": [list(head) for head in heads],
        "head": np.asarray(head_of, np.int16),
        **_flat("tail", [tail for _, _, tail, _ in rows]),
        **_flat("answer", answers),
        "first_answer": _offsets([len(texts) for *_, texts in rows]),
    }


def _flat(name: str, lists: list[list[int]]) -> Arrays:
    total = np.fromiter((token for tokens in lists for token in tokens), np.int32)
    return {f"{name}_tokens": total, f"{name}_offsets": _offsets([len(tokens) for tokens in lists])}


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
