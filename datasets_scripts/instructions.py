"""Unambiguous place_anchor and place_anchors instructions from the boxes of a scene and the views that were kept.

    the only one of its label           "Place an anchor on the sofa."
    largest, by half at least           "Place an anchor on the largest chair."
    closest, left-most, right-most      as seen from the first view: the sample names that view (anchor_frame_id)
    all of a label, at most 12          "Place an anchor on every chair."

A thing that no kept view sees is never asked for, but it still makes its label ambiguous.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datasets_scripts.boxes import Target, seen_share, volume
from datasets_scripts.capture import Float, Row, Skips
from datasets_scripts.schema import MAX_ANCHORS
from processing.action_vggt_qwen3 import MAX_LABEL_CHARS

MIN_SEEN = 0.2
LARGER_BY = 1.5
NEARER_BY_M, NEARER_BY = 0.5, 1.2
BEARING_MARGIN_DEG = 5.0
FRAMES_PER_RELATION = 2

UNIQUE_TEXT = "Place an anchor on the {label}."
LARGEST_TEXT = "Place an anchor on the largest {label}."
NEAREST_TEXT = "Place an anchor on the {label} closest to the first camera."
SIDE_TEXT = "Place an anchor on the {side}-most {label} in the first photograph."
ALL_TEXT = "Place an anchor on every {label}."


@dataclass(frozen=True)
class View:
    """One kept view: `size` (width, height) of the photograph, `depth_m` [H, W] over it at any resolution, or None."""

    frame_id: str
    size: tuple[int, int]
    intrinsics: Float
    world_from_cam: Float
    depth_m: np.ndarray | None = None


def action_samples(scene_id: str, targets: Sequence[Target], views: Sequence[View], skips: Skips) -> list[Row]:
    """The instructions of a scene as rows of SAMPLE_FEATURES, in a fixed order.

    Args:
        scene_id: as in the scene's row.
        targets: every known box of the scene, in the world frame.
        views: the views that were kept, best first.
        skips: counts boxes that nothing can be asked about.
    """
    usable = [target for target in targets if len(target["label"]) <= MAX_LABEL_CHARS]
    skips.skip("box with a label too long for an action", scene_id, len(targets) - len(usable))
    seen = np.array([[_seen(target, view) for view in views] for target in usable]).reshape(len(usable), len(views))
    hidden = int((seen.max(axis=1, initial=0) < MIN_SEEN).sum())
    skips.skip("box that no kept view sees", scene_id, hidden)
    rows: list[Row] = []
    for label in sorted({target["label"] for target in usable}):
        members = [index for index, target in enumerate(usable) if target["label"] == label]
        group = _Group(label, [usable[index] for index in members], seen[members], views)
        for family, text, chosen, anchor in group.relations():
            rows.append(_action_row(f"{scene_id}/{family}/{len(rows)}", scene_id, family, text, chosen, anchor))
    return rows


def _seen(target: Target, view: View) -> float:
    return seen_share(target, view.world_from_cam, view.intrinsics, view.size, view.depth_m)


Relation = tuple[str, str, list[Target], str | None]  # family, instruction, targets, anchor frame


@dataclass(frozen=True)
class _Group:
    """All things of one label; `seen` [things, views] is the share of each that a view sees."""

    label: str
    things: list[Target]
    seen: Float
    views: Sequence[View]

    def relations(self) -> Iterator[Relation]:
        visible = self.seen.max(axis=1, initial=0) >= MIN_SEEN
        if len(self.things) == 1:
            if visible[0]:
                yield "anchor_name", UNIQUE_TEXT.format(label=self.label), self.things, None
            return
        if visible.all() and len(self.things) <= MAX_ANCHORS:
            yield "anchors_kind", ALL_TEXT.format(label=self.label), self.things, None
        volumes = np.array([volume(thing) for thing in self.things])
        order = np.argsort(-volumes, kind="stable")
        if visible[order[0]] and volumes[order[0]] >= LARGER_BY * volumes[order[1]]:
            yield "anchor_size", LARGEST_TEXT.format(label=self.label), [self.things[order[0]]], None
        if self.label != "wall":  # which wall is nearest depends on where on it one measures
            yield from self._from_views()

    def _from_views(self) -> Iterator[Relation]:
        asked: dict[str, int] = {}
        for index, view in enumerate(self.views):
            nearest = self._nearest(index)
            found = {} if nearest is None else {NEAREST_TEXT: ("anchor_camera", nearest)}
            found |= {SIDE_TEXT.replace("{side}", side): ("anchor_side", thing) for side, thing in self._sides(index)}
            for text, (family, thing) in found.items():
                if asked.get(text, 0) < FRAMES_PER_RELATION:
                    asked[text] = asked.get(text, 0) + 1
                    yield family, text.format(label=self.label), [self.things[thing]], view.frame_id

    def _nearest(self, view: int) -> int | None:
        eye = self.views[view].world_from_cam[:3, 3]
        distances = np.array([np.linalg.norm(np.asarray(thing["center"]) - eye) for thing in self.things])
        first, second = np.argsort(distances, kind="stable")[:2]
        clear = distances[second] >= max(distances[first] * NEARER_BY, distances[first] + NEARER_BY_M)
        return int(first) if clear and self.seen[first, view] >= MIN_SEEN else None

    def _sides(self, view: int) -> Iterator[tuple[str, int]]:
        """The left-most and right-most thing of those the view shows, if it shows at least two and none by half."""
        seen = self.seen[:, view]
        shown = np.flatnonzero(seen >= MIN_SEEN)
        if len(shown) < 2 or len(shown) < int((seen > 0).sum()):
            return
        cam_from_world = np.linalg.inv(self.views[view].world_from_cam)
        centers = np.array([self.things[index]["center"] for index in shown]) @ cam_from_world[:3, :3].T
        in_cam = centers + cam_from_world[:3, 3]
        bearings = np.degrees(np.arctan2(in_cam[:, 0], in_cam[:, 2]))
        order = np.argsort(bearings, kind="stable")
        if bearings[order[1]] - bearings[order[0]] >= BEARING_MARGIN_DEG:
            yield "left", int(shown[order[0]])
        if bearings[order[-1]] - bearings[order[-2]] >= BEARING_MARGIN_DEG:
            yield "right", int(shown[order[-1]])


def _action_row(
    sample_id: str, scene_id: str, family: str, text: str, targets: list[Target], anchor: str | None
) -> Row:
    return {
        "sample_id": sample_id,
        "scene_id": scene_id,
        "task": "actions",
        "question": text,
        "situation": None,
        "situation_pose": None,
        "answers": [],
        "question_type": family,
        "action": "place_anchor" if len(targets) == 1 else "place_anchors",
        "targets": targets,
        "anchor_frame_id": anchor,
    }
