"""What a model is shown: everything, or less or something else as a control on what its answers rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from training.data import Draw, SceneDataset, SceneExample


@dataclass(frozen=True)
class Condition:
    """One way of showing a scene. `description` completes "the model sees …"; `num_views` None = all that are drawn."""

    name: str
    description: str
    blind: bool = False
    num_views: int | None = None
    shuffled_views: bool = False
    shuffled_images: bool = False
    hide_geometry: bool = False
    hide_depth: bool = False


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("sighted", "the views of the scene"),
        Condition("blind", "no image at all: what the questions alone give away", blind=True),
        Condition("single_view", "the first view alone", num_views=1),
        Condition("two_views", "the first two views", num_views=2),
        Condition("four_views", "the first four views", num_views=4),
        Condition("shuffled_views", "the same views, all but the first in another order", shuffled_views=True),
        Condition("shuffled_images", "the views of another room", shuffled_images=True),
        Condition("no_geometry", "the views without cameras and depth", hide_geometry=True, hide_depth=True),
        Condition("no_depth", "the views with cameras, without depth", hide_depth=True),
    )
}
SIGHTED = "sighted"


def parse_controls(text: str) -> list[str]:
    """Names of controls from a comma-separated list.

    Raises:
        ValueError: naming those that are unknown, and all that are known.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = [name for name in CONDITIONS if name != SIGHTED]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"controls names {', '.join(unknown)}; known are {', '.join(known)}")
    return names


@dataclass(frozen=True)
class Shown:
    """A drawn scene as it is (`truth`: frames and cameras that answers are read in) and as the model sees it."""

    truth: SceneExample
    seen: SceneExample


class ShownScenes(TorchDataset):
    """The draws of a dataset under a condition.

    Raises:
        ValueError: images are to be shuffled and there is only one room.
    """

    def __init__(self, dataset: SceneDataset, condition: Condition) -> None:
        self.dataset, self.condition = dataset, condition
        self.partners = other_rooms(dataset) if condition.shuffled_images else {}

    def __getitem__(self, draw: Draw) -> Shown:
        truth = self.dataset[draw]
        seen = truth
        if self.condition.shuffled_images:
            other = self.dataset[Draw(self.partners[draw.scene], (), None, draw.seed)]
            seen = dataclasses.replace(other, samples=truth.samples, draw=draw)
        if self.condition.num_views is not None:
            seen = chosen_views(seen, range(min(self.condition.num_views, len(seen.frame_ids))))
        if self.condition.shuffled_views:
            others = np.random.default_rng(draw.scene).permutation(range(1, len(seen.frame_ids)))
            seen = chosen_views(seen, [0, *others.tolist()])  # the first is the frame that actions are stated in
        if self.condition.hide_geometry:
            seen = dataclasses.replace(seen, intrinsics=None, world_from_cam=None, depth=None)
        if self.condition.hide_depth:
            seen = dataclasses.replace(seen, depth=None)
        return Shown(truth, seen)


def chosen_views(example: SceneExample, views: Sequence[int]) -> SceneExample:
    """The example with these of its views, in this order."""
    keys = ("frame_ids", "images", "intrinsics", "world_from_cam", "depth")
    values = {key: getattr(example, key) for key in keys}
    chosen = {
        key: value[list(views)] if isinstance(value, np.ndarray) else [value[view] for view in views]
        for key, value in values.items()
        if value is not None
    }
    return dataclasses.replace(example, **chosen)


def other_rooms(dataset: SceneDataset) -> dict[int, int]:
    """For every scene one of another room, half the table away, so that each is used about once.

    Raises:
        ValueError: all scenes are of one room.
    """
    rooms: list[str] = [room for table in dataset.scene_tables for room in table["room_id"]]
    return {scene: _next_room(rooms, scene) for scene in range(len(rooms))}


def _next_room(rooms: Sequence[str], scene: int) -> int:
    start = scene + max(1, len(rooms) // 2)
    for candidate in (index % len(rooms) for index in range(start, start + len(rooms))):
        if rooms[candidate] != rooms[scene]:
            return candidate
    raise ValueError(f"all {len(rooms)} scenes are of the room {rooms[scene]}: there are no other images to show")
