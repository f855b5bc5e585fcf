"""Reading built datasets: which samples share a scene, which of its views are drawn, and the batches made of them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, load_from_disk
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from datasets_scripts.schema import read_manifest

if TYPE_CHECKING:
    from .feature_cache import CachedViews

MILLIMETRES = 1000.0
ANSWERED_PER_SCENE = 8
"""Questions that share one encoding of their scene where they are answered by generation."""


@dataclass(frozen=True)
class Draw:
    """One scene and the questions asked about it together; the seed decides its views and dropouts.

    Attributes:
        scene: row of the scene table.
        samples: rows of the sample table, all of this scene.
        anchor: frame that must be view 0, or None.
        seed: what every random choice for this draw derives from; None = the fixed choice of evaluation.
    """

    scene: int
    samples: tuple[int, ...]
    anchor: str | None = None
    seed: tuple[int, ...] | None = None


@dataclass
class SceneExample:
    """Drawn views of a scene, decoded, and the samples asked about it.

    `intrinsics` [V, 3, 3] pixels of the stored image, `world_from_cam` [V, 4, 4] metres, `depth` V arrays [H, W] in
    metres with 0 = invalid: each None where unknown, and the cameras also where the scene's frame is not metric or
    not gravity-aligned. `views` holds cached features in place of images and depth.
    """

    scene_id: str
    source: str
    frame_ids: list[str]
    images: list[PILImage.Image]
    intrinsics: np.ndarray | None
    world_from_cam: np.ndarray | None
    depth: list[np.ndarray] | None
    samples: list[dict[str, Any]]
    draw: Draw
    views: CachedViews | None = None


class SceneDataset(TorchDataset):
    """The scenes and samples of one split of one or several built datasets, read by `Draw`.

    Args:
        roots: dataset folders, each with its manifest.
        split: sample split, `train`, `val` or `test`; scenes come from `train` or `heldout` accordingly.
        num_views: views drawn of each scene, at most those stored.
        tasks: keep only these tasks; None = all.
        max_samples: keep only the first ones; None = all.

    Raises:
        NotADatasetError: for a folder without manifest.
        ValueError: for a split that is not there, samples without their scene, or nothing left.
    """

    def __init__(
        self,
        roots: Sequence[str | Path],
        split: str,
        num_views: int,
        tasks: Sequence[str] | None = None,
        max_samples: int | None = None,
    ) -> None:
        if num_views < 1:
            raise ValueError(f"num_views is {num_views}; at least one view must be drawn")
        self.roots, self.split, self.num_views = [str(root) for root in roots], split, num_views
        self.scene_tables = [_load_table(root, "scenes", "train" if split == "train" else "heldout") for root in roots]
        self.sample_tables = [_load_table(root, "samples", split) for root in roots]
        self.label_tables = [_load_labels(root, split) for root in roots]
        self._encoded_scenes = [table.with_format("arrow") for table in self.scene_tables]  # decodes no image by itself
        self.camera_tables = [t.select_columns(["frame_ids", "world_from_cam"]) for t in self._encoded_scenes]
        self._index(tasks, max_samples)
        self.frame_ids = [frames for table in self.scene_tables for frames in _columns(table, "frame_ids")[0]]

    def _index(self, tasks: Sequence[str] | None, max_samples: int | None) -> None:
        """Numbers scenes and samples over all roots; samples hold (table, row, scene, task, anchor)."""
        self.scenes = [(t, row) for t, table in enumerate(self.scene_tables) for row in range(len(table))]
        offsets = np.cumsum([0] + [len(table) for table in self.scene_tables])
        self.samples: list[tuple[int, int, int, str, str | None]] = []
        for t, (scenes, samples) in enumerate(zip(self.scene_tables, self.sample_tables)):
            scene_rows = {scene_id: int(offsets[t]) + row for row, scene_id in enumerate(*_columns(scenes, "scene_id"))}
            columns = _columns(samples, "scene_id", "task", "anchor_frame_id")
            for row, (scene_id, task, anchor) in enumerate(zip(*columns)):
                if scene_id not in scene_rows:
                    raise ValueError(
                        f"{self.roots[t]}: sample {samples[row]['sample_id']} names scene {scene_id}, which the scene "
                        "table lacks; build the dataset again"
                    )
                if tasks is None or task in tasks:
                    self.samples.append((t, row, scene_rows[scene_id], task, anchor))
        self.samples = self.samples[:max_samples]
        if not self.samples:
            present = sorted({task for table in self.sample_tables for task in set(table["task"])})
            raise ValueError(f"{self.roots}, split {self.split}: no sample of {tasks}; the tasks there are {present}")

    def __len__(self) -> int:
        return len(self.samples)

    def fixed_draws(self, samples_per_draw: int) -> list[Draw]:
        """Every sample once, in order of the table, neighbours of one scene together: the draws of evaluation."""
        draws: list[Draw] = []
        for index, (_, _, scene, _, anchor) in enumerate(self.samples):
            last = draws[-1] if draws else None
            if last and (last.scene, last.anchor) == (scene, anchor) and len(last.samples) < samples_per_draw:
                draws[-1] = Draw(scene, (*last.samples, index), anchor)
            else:
                draws.append(Draw(scene, (index,), anchor))
        return draws

    def __getitem__(self, draw: Draw) -> SceneExample:
        scene = self._scene(draw.scene)
        return self._read(draw, scene, draw_views(scene["frame_ids"], self.num_views, draw.anchor, draw.seed))

    def read_scene(self, index: int, frame_ids: Sequence[str] | None = None) -> SceneExample:
        """The named views of a scene in that order, without samples; None = all that are stored.

        Raises:
            ValueError: for a frame that the scene lacks.
        """
        scene = self._scene(index)
        stored = scene["frame_ids"]
        wanted = stored if frame_ids is None else list(frame_ids)
        missing = [frame for frame in wanted if frame not in stored]
        if missing:
            raise ValueError(f"scene {scene['scene_id']} lacks the frames {missing}; it has {stored}")
        return self._read(Draw(index, ()), scene, [stored.index(frame) for frame in wanted])

    def read_labels(self, index: int) -> dict[str, Any] | None:
        """What the views of a scene show: `instances`, a PNG file a view, and `things` (see the schema); or None."""
        table, row = self.scenes[index]
        if self.label_tables[table] is None:
            return None
        labels = self.label_tables[table][row].to_pylist()[0]
        if labels["scene_id"] != self.scene_id(index):
            raise ValueError(
                f"{self.roots[table]}: row {row} of labels is of scene {labels['scene_id']}, that of scenes is "
                f"{self.scene_id(index)}: the tables do not belong together; build the dataset again"
            )
        return {**labels, "instances": [io.BytesIO(view["bytes"]) for view in labels["instances"]]}

    def scene_cameras(self, index: int) -> dict[str, Any]:
        """`frame_ids` and `world_from_cam` of a scene, without its images."""
        table, row = self.scenes[index]
        return self.camera_tables[table][row].to_pylist()[0]

    def _scene(self, index: int) -> dict[str, Any]:
        table, row = self.scenes[index]
        return self._encoded_scenes[table][row].to_pylist()[0]

    def _read(self, draw: Draw, scene: dict[str, Any], views: list[int]) -> SceneExample:
        frame_ids = [scene["frame_ids"][v] for v in views]
        where = f"{self.roots[self.scenes[draw.scene][0]]}, scene {scene['scene_id']}"
        known = cameras_known(scene)
        depth = None
        if known and scene["depth"] is not None:
            depth = [
                _decode_depth(scene["depth"][v], f"{where}, depth of frame {scene['frame_ids'][v]}") for v in views
            ]
        return SceneExample(
            scene_id=scene["scene_id"],
            source=scene["source"],
            frame_ids=frame_ids,
            images=[_decode_image(scene["images"][v], f"{where}, frame {scene['frame_ids'][v]}") for v in views],
            intrinsics=np.asarray(scene["intrinsics"], np.float64)[views] if known else None,
            world_from_cam=np.asarray(scene["world_from_cam"], np.float64)[views] if known else None,
            depth=depth,
            samples=[self.sample(index) for index in draw.samples],
            draw=draw,
        )

    def thin(self, count: int) -> None:
        """Keeps at most `count` samples, spread evenly over the table.

        Raises:
            ValueError: a count below 1.
        """
        if count < 1:
            raise ValueError(f"at most {count} samples would leave none; wanted at least 1")
        if count < len(self.samples):
            self.samples = [self.samples[i * len(self.samples) // count] for i in range(count)]

    def scene_id(self, index: int) -> str:
        """Name of a scene."""
        table, row = self.scenes[index]
        return self.scene_tables[table]["scene_id"][row]

    def sample(self, index: int) -> dict[str, Any]:
        """One row of the sample table."""
        table, row, *_ = self.samples[index]
        return self.sample_tables[table][row]

    def samples_of_scene(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the sample table of one scene, read together, which is many times faster."""
        if not indices:
            return []
        table = self.sample_tables[self.samples[indices[0]][0]]
        columns = table[[self.samples[index][1] for index in indices]]
        return [dict(zip(columns, values)) for values in zip(*columns.values())]


def cameras_known(scene: dict[str, Any]) -> bool:
    """Whether a row of the scene table has cameras that metres can be stated by."""
    return bool(scene["world_from_cam"] is not None and scene["is_metric"] and scene["is_gravity_aligned"])


def draw_views(frame_ids: Sequence[str], num_views: int, anchor: str | None, seed: Sequence[int] | None) -> list[int]:
    """Indices of the drawn views, the anchor first.

    Without a seed they are the first ones, the same in every run of an evaluation: a build stores the views that see
    most of the room first.

    Raises:
        ValueError: where the anchor is not among the frames.
    """
    count = min(num_views, len(frame_ids))
    if seed is None:
        views = list(range(count))
    else:
        views = np.random.default_rng(list(seed)).permutation(len(frame_ids))[:count].tolist()
    if anchor is None:
        return views
    if anchor not in frame_ids:
        raise ValueError(f"anchor frame {anchor} is not among the stored frames {list(frame_ids)}")
    first = list(frame_ids).index(anchor)
    return [first, *[v for v in views if v != first]][:count]


class SceneBatchSampler(Sampler[list[Draw]]):
    """Batches of draws, several questions a scene, so that a scene is encoded once for all of them.

    An epoch holds every sample once and is the same for any number of workers; each rank yields the same number of
    batches (the last ones repeat the first where they do not divide). With `task_mix`, tasks are drawn in that
    proportion: the epoch keeps its length, rare tasks repeat and frequent ones are thinned.

    Args:
        dataset: where the samples are.
        samples_per_batch: samples a batch and rank; a multiple of `samples_per_scene`.
        samples_per_scene: at most so many questions share one encoding of a scene.
        task_mix: task -> share, summing to 1; None = as they are.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        samples_per_batch: int,
        samples_per_scene: int,
        seed: int,
        task_mix: dict[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if samples_per_scene < 1 or samples_per_batch % samples_per_scene:
            raise ValueError(
                f"samples_per_batch = {samples_per_batch} is not a multiple of samples_per_scene = {samples_per_scene}"
            )
        self.scenes_per_batch = samples_per_batch // samples_per_scene
        self.samples_per_scene, self.seed, self.rank, self.world_size = samples_per_scene, seed, rank, world_size
        self.anchors = [anchor for *_, anchor in dataset.samples]
        self.buckets = _bucket_samples(dataset, by_task=bool(task_mix))
        self.task_mix = _check_mix(task_mix, {task for *_, task, _ in dataset.samples})
        self.num_draws = sum(len(self._chunks(rows)) for rows in self.buckets.values())
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_draws / (self.scenes_per_batch * self.world_size))

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self._epoch_draws()
        wanted = len(self) * self.world_size * self.scenes_per_batch
        draws = [draws[i % len(draws)] for i in range(wanted)]
        for batch in range(self.rank, len(self) * self.world_size, self.world_size):
            yield draws[batch * self.scenes_per_batch : (batch + 1) * self.scenes_per_batch]

    def _epoch_draws(self) -> list[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        groups: dict[str | None, list[tuple[int, str | None, tuple[int, ...]]]] = {}
        for (task, scene), rows in self.buckets.items():
            chunks = self._chunks(rng.permutation(rows).tolist())
            groups.setdefault(task, []).extend((scene, *chunk) for chunk in chunks)
        chosen = self._mix(groups, rng)
        chosen = [chosen[i] for i in rng.permutation(len(chosen))]
        return [
            Draw(scene, rows, anchor, seed=(self.seed, self.epoch, index))
            for index, (scene, anchor, rows) in enumerate(chosen)
        ]

    def _chunks(self, rows: list[int]) -> list[tuple[str | None, tuple[int, ...]]]:
        """Samples of a scene that are asked together, with their anchor; those without one join any other.

        How many there are does not depend on the order of the rows.
        """
        size = self.samples_per_scene
        by_anchor: dict[str | None, list[int]] = {None: []}
        for row in rows:
            by_anchor.setdefault(self.anchors[row], []).append(row)
        free = by_anchor.pop(None)
        chunks: list[tuple[str | None, tuple[int, ...]]] = []
        for anchor, members in by_anchor.items():
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                room = size - len(chunk)
                chunks.append((anchor, (*chunk, *free[:room])))
                free = free[room:]
        return chunks + [(None, tuple(free[start : start + size])) for start in range(0, len(free), size)]

    def _mix(self, groups: dict[str | None, list[Any]], rng: np.random.Generator) -> list[Any]:
        if self.task_mix is None:
            return [group for task_groups in groups.values() for group in task_groups]
        counts = _apportion(self.task_mix, self.num_draws)
        chosen = []
        for task, count in counts.items():
            if not count:
                continue
            order = np.concatenate([rng.permutation(len(groups[task])) for _ in range(-(-count // len(groups[task])))])
            chosen += [groups[task][i] for i in order[:count]]
        return chosen


def fixed_batches(dataset: SceneDataset, batch_size: int) -> list[list[Draw]]:
    """Whole draws gathered into batches of at most `batch_size` samples, the same for any number of processes.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, wanted at least 1")
    batches: list[list[Draw]] = []
    for draw in dataset.fixed_draws(min(ANSWERED_PER_SCENE, batch_size)):
        if batches and num_samples(batches[-1]) + len(draw.samples) <= batch_size:
            batches[-1].append(draw)
        else:
            batches.append([draw])
    return batches


def num_samples(batch: Sequence[Draw]) -> int:
    """Samples of a batch of draws."""
    return sum(len(draw.samples) for draw in batch)


def deal(batches: list[list[Draw]], rank: int, world_size: int) -> list[list[Draw]]:
    """Every world_size-th batch; the last ones repeat the first so that no rank waits for another."""
    rounds = -(-len(batches) // world_size)
    return [batches[(i * world_size + rank) % len(batches)] for i in range(rounds)]


def _bucket_samples(dataset: SceneDataset, by_task: bool) -> dict[tuple[str | None, int], list[int]]:
    """Samples that may share an encoding: those of a scene, and of a task where tasks are mixed by share."""
    buckets: dict[tuple[str | None, int], list[int]] = {}
    for index, (_, _, scene, task, _) in enumerate(dataset.samples):
        buckets.setdefault((task if by_task else None, scene), []).append(index)
    return buckets


def _check_mix(task_mix: dict[str, float] | None, present: set[str]) -> dict[str, float] | None:
    if not task_mix:
        return None
    if set(task_mix) != present:
        raise ValueError(f"task_mix names {sorted(task_mix)}, but the data holds {sorted(present)}; name just these")
    if min(task_mix.values()) < 0 or abs(sum(task_mix.values()) - 1) > 1e-6:
        raise ValueError(f"task_mix = {task_mix}: the shares must be at least 0 and sum to 1")
    return task_mix


def _apportion(shares: dict[str, float], total: int) -> dict[str, int]:
    """Whole numbers in these shares that sum to `total`: the largest remainders round up."""
    exact = {task: share * total for task, share in sorted(shares.items())}
    counts = {task: int(value) for task, value in exact.items()}
    by_remainder = sorted(exact, key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: total - sum(counts.values())]:
        counts[task] += 1
    return counts


def _load_table(root: str | Path, table: str, split: str) -> Dataset:
    read_manifest(root)
    path = Path(root) / table / split
    if not path.is_dir():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise ValueError(f"{root} has no {table}/{split}; it has {there}")
    return load_from_disk(str(path))


def _columns(table: Dataset, *names: str) -> list[list[Any]]:
    """Whole columns as lists, read from Arrow at once: iteration by the library takes half a minute a million."""
    read = table.select_columns(list(names)).with_format("arrow")[:]
    return [read.column(name).to_pylist() for name in names]


def _load_labels(root: str | Path, split: str) -> Dataset | None:
    """The dense labels of a split's scenes, in the order of the scene table; None where there are none."""
    if not (Path(root) / "labels").is_dir():
        return None
    return _load_table(root, "labels", "train" if split == "train" else "heldout").with_format("arrow")


def _decode_image(stored: dict[str, Any], where: str) -> PILImage.Image:
    try:
        return PILImage.open(io.BytesIO(stored["bytes"])).convert("RGB")
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise ValueError(f"{where}: unreadable image ({error}); build the dataset again") from error


def _decode_depth(stored: dict[str, Any], where: str) -> np.ndarray:
    try:
        millimetres = np.asarray(PILImage.open(io.BytesIO(stored["bytes"])))
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise ValueError(f"{where}: unreadable depth ({error}); build the dataset again") from error
    return millimetres.astype(np.float32) / MILLIMETRES
