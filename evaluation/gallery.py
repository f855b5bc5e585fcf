"""The examples of a report: what the page's script draws, with each picture stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from datasets_scripts.schema import ACTION_TASKS
from processing.action_vggt_qwen3 import format_action
from training.data import Draw, SceneDataset, SceneExample

from .drawing import anchors_of, paths_in_view, plan, room_from_above, thumbnail
from .rows import Row, scored_in_ref

THUMBNAIL_PX = 320
VERDICT_LABELS = (("right", "Right"), ("partly", "Partly"), ("wrong", "Wrong"), ("unlabelled", "Unlabelled"))
LABEL_OF_VERDICT = dict(VERDICT_LABELS)


@dataclass(frozen=True)
class Line:
    """One line of a card: who says what; `verdict` colours it."""

    name: str
    text: str
    verdict: str = ""


@dataclass
class Pictures:
    """Thumbnails and plans of the scenes of a dataset, each made once; `images` is what the page embeds."""

    dataset: SceneDataset | None
    images: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [] if self.dataset is None else [i for table in self.dataset.scene_tables for i in table["scene_id"]]
        self.index = {scene_id: index for index, scene_id in enumerate(ids)}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.bounds: dict[str, np.ndarray | None] = {}
        self._read = lru_cache(maxsize=4)(self._read_scene)

    def add(self, card: dict[str, Any], row: Row) -> None:
        """Puts the views of a row on its card, and for an action its boxes in them and on a plan."""
        scene_id = row["view_scene"] or row["scene_id"]
        if scene_id not in self.index:
            return
        example = self._read(scene_id, tuple(row["views"]))
        card["views"] = [self._view(example, index) for index in range(len(example.images))]
        if row["task"] in ACTION_TASKS and scene_id == row["scene_id"] and example.world_from_cam is not None:
            self._draw_boxes(card, row, example)

    def _read_scene(self, scene_id: str, frame_ids: tuple[str, ...] | None) -> SceneExample:
        """The named views; none named = those an evaluation would show, None = all that are stored."""
        index = self.index[scene_id]
        return self.dataset[Draw(index, ())] if frame_ids == () else self.dataset.read_scene(index, frame_ids)

    def _view(self, example: SceneExample, index: int) -> dict[str, Any]:
        key = f"{example.scene_id}/{example.frame_ids[index]}"
        if key not in self.images:
            self.images[key], self.sizes[key] = thumbnail(example.images[index], THUMBNAIL_PX)
        return {"key": key, "frame": example.frame_ids[index], "size": self.sizes[key]}

    def _draw_boxes(self, card: dict[str, Any], row: Row, example: SceneExample) -> None:
        truth, predicted = anchors_of(row["reference_action"]), anchors_of(row["action"])
        for index, view in enumerate(card["views"]):
            shrink = view["size"][0] / example.images[index].size[0]
            camera = (example.world_from_cam[index], example.intrinsics[index], shrink)
            view["paths"] = paths_in_view(truth, "truth", *camera) + paths_in_view(predicted, "predicted", *camera)
        card["plan"] = plan(example, truth, predicted, self._underlay(example.scene_id))

    def _underlay(self, scene_id: str) -> tuple[str, np.ndarray] | None:
        key = f"{scene_id}/from above"
        if key not in self.bounds:
            seen = room_from_above(self._read(scene_id, None))
            self.bounds[key] = None if seen is None else seen[1]
            if seen is not None:
                self.images[key] = seen[0]
        bounds = self.bounds[key]
        return None if bounds is None else (key, bounds)


def card(row: Row, verdict: str, label: str, detail: str, lines: Iterable[Line]) -> dict[str, Any]:
    """One example without its pictures. `label` says the verdict in words, `detail` adds a figure."""
    scene = "" if row["sample_id"].startswith(row["scene_id"]) else row["scene_id"]
    meta = [row["question_type"], scene, row["sample_id"], detail]
    if row["flags"].get("truncated"):
        meta.append("stopped by the token limit")
    return {
        "order": hashlib.sha256(row["sample_id"].encode()).hexdigest()[:8],
        "task": row["task"],
        "type": row["question_type"],
        "verdict": verdict,
        "label": label,
        "meta": [text for text in meta if text],
        "question": row["question"],
        "situation": row["situation"] or "",
        "lines": [[line.name, line.text, line.verdict] for line in lines],
        "views": [],
    }


def answer_line(name: str, row: Row, verdict: str) -> Line:
    """What was answered; an action in code letters."""
    return Line(name, row["prediction"], f"{verdict} {'code' if row['task'] in ACTION_TASKS else ''}".strip())


def control_line(name: str, row: Row, verdict: str, detail: str) -> Line:
    """What was answered under a control; of an action only how good it was."""
    return Line(name, detail if row["task"] in ACTION_TASKS else row["prediction"], verdict)


def reference_lines(row: Row) -> list[Line]:
    """What was wanted: the answers, or the canonical action in the frame of the first view."""
    if row["task"] not in ACTION_TASKS:
        return [Line("Wanted", " · ".join(dict.fromkeys(row["references"])) or "unknown")]
    if row["reference_action"] is None:
        return [Line("Wanted", "unknown")]
    faults = [Line("Fault", row["error"])] if row["error"] else []
    return [Line("Wanted", format_action(scored_in_ref(row)[1]), "code"), *faults]


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spaced: examples are not chosen by hand."""
    return list(range(count)) if count <= limit else [i * count // limit for i in range(limit)]


def gallery_data(cards: Iterable[dict[str, Any]], pictures: Pictures, total: int) -> dict[str, Any]:
    """What the page's script reads: {examples, images, total}."""
    return {"examples": list(cards), "images": pictures.images, "total": total}


def shuffled(cards: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cards in an order that mixes scenes and tasks and is the same every time."""
    return sorted(cards, key=lambda each: each["order"])
