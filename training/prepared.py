"""Datasets prepared for speed: batches made by indexing arrays that may lie on the accelerator whole.

Small models see so many samples a second that decoding and tokenising them anew would leave the accelerator idle. A
batch equals the collator's packed one for the same draws (`tests/test_prepared.py`), and may carry dense labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from datasets_scripts.schema import ACTION_TASKS
from modeling_vggt_qwen3.modeling_perceiver import SceneGeometry, patch_rays, take_patches
from processing.geometry_vggt_qwen3 import NUM_DEPTH_BINS
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .collator import VISION_END, drawn_inputs, random_stream
from .data import Draw, SceneDataset, draw_views
from .packing import IGNORE_INDEX, LENGTH_MULTIPLE
from .prepare import MARKER
from .prepared_texts import PackedRow, PreparedTexts

Batch = dict[str, Any]
GRAPH_LENGTH_MULTIPLE, GRAPH_LABELS_MULTIPLE = 128, 8192


class PreparedScenes:
    """Arrays of a `SceneDataset`: N scenes of K views of P patches, T things a scene, M samples.

    `scenes` maps names to tensors on `device`: pixels uint8 [N, K, 3, H, W]; intrinsics float32 [N, K, 3, 3] of the
    model's image; world_from_cam, ref_from_world float64 [N, K, 4, 4], ref of each view; points float32 [N, K, P, 3]
    in camera metres and points_mask bool [N, K, P]; depth_hist float32 [N, K, 16]. With dense labels also patch_thing
    uint8 [N, K, P] (0 = nothing); depth_mm int16 [N, K, H, W]; thing_label, thing_color and thing_kind int8 [N, T]
    (indices, -1 = none); thing_center, thing_size float32 [N, T, 3] and thing_axes float32 [N, T, 2, 2] (horizontal
    part of the first two box axes), world frame.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        made = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        self.device = torch.device(device)
        self.samples = [tuple(sample) for sample in made["samples"]]
        self.heads = [np.asarray(head, np.int64) for head in made["heads"]]
        self.text = {name: np.load(folder / f"text_{name}.npy") for name in made["text"]}
        self.scenes = LazyArrays(made["scenes"], lambda name: self._load(folder / f"{name}.npy"))

    @property
    def has_labels(self) -> bool:
        """Whether there are dense labels."""
        return "patch_thing" in self.scenes

    def _load(self, path: Path) -> torch.Tensor:
        tensor = torch.from_numpy(np.load(path, mmap_mode="c"))
        if self.device.type == "cpu":
            return tensor
        moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        for start in range(0, len(tensor), 1024):
            moved[start : start + 1024] = tensor[start : start + 1024].to(self.device)
        return moved

    def place(self, values: Sequence[Any]) -> torch.Tensor:
        """Values on the device of the arrays, without waiting for what it is doing."""
        return torch.tensor(values).to(self.device, non_blocking=True)

    def take(self, name: str, scenes: torch.Tensor, views: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [S, ...] of scenes [S], or [S, V, ...] of their views [S, V]."""
        return self.scenes[name][scenes] if views is None else self.scenes[name][scenes[:, None], views]

    def rows_of(self, dataset: SceneDataset) -> list[int]:
        """The prepared sample of each of a dataset's, which may be some of those prepared."""
        rows = {(table, row): index for index, (table, row) in enumerate(self.samples)}
        return [rows[table, row] for table, row, *_ in dataset.samples]


class LazyArrays(Mapping[str, torch.Tensor]):
    """Arrays by name, each loaded when it is first read: depth maps, two fifths of all, serve stage 0 alone."""

    def __init__(self, names: Sequence[str], load: Callable[[str], torch.Tensor]) -> None:
        self._names, self._load = list(names), load
        self.loaded: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PreparedCollator:
    """Draws -> one packed batch of the batch table; scene tensors on the device of the arrays, text on the CPU.

    Args:
        prepared, dataset: the arrays and the dataset that they were made of.
        processor, task_names, geometry_dropout, depth_dropout, any_answer: as in `SceneCollator`.
        num_rays: rays a scene in `ray_targets` (see `ray_targets`); 0 = none.
        few_shapes: pad texts and `answer_positions` far enough that most batches have the shapes of another, as CUDA
            graphs want it.
    """

    def __init__(
        self,
        prepared: PreparedScenes,
        dataset: SceneDataset,
        processor: VggtQwen3Processor,
        task_names: Sequence[str],
        *,
        geometry_dropout: float = 0.0,
        depth_dropout: float = 0.0,
        any_answer: bool = True,
        num_rays: int = 0,
        few_shapes: bool = False,
    ) -> None:
        self.few_shapes = few_shapes
        self.prepared, self.dataset, self.processor = prepared, dataset, processor
        self.task_ids = {name: index for index, name in enumerate(task_names)}
        self.dropouts = (geometry_dropout, depth_dropout)
        self.num_rays = num_rays
        self.rows = prepared.rows_of(dataset)
        tasks = np.zeros(len(prepared.samples), np.int64)
        is_action = np.zeros(len(prepared.samples), bool)
        for row, (*_, task, _) in zip(self.rows, dataset.samples):
            tasks[row], is_action[row] = self.task_ids[task], task in ACTION_TASKS
        self.texts = PreparedTexts(prepared.text, tasks, is_action, any_answer)
        self.vision_end = processor.tokenizer.convert_tokens_to_ids(VISION_END)
        self.patch_size = processor.image_processor.patch_size

    def __call__(self, draws: Sequence[Draw]) -> Batch:
        kept = [drawn_inputs(draw, *self.dropouts) for draw in draws]
        views = [self._views(draw) for draw in draws]
        batch = self._text(draws, views, [cameras for cameras, _ in kept])  # first: an accelerator is still at work
        batch |= self.scene_tensors(draws, views, kept)
        if self.num_rays:
            batch["ray_targets"] = ray_targets(self.prepared, draws, views, batch, self.num_rays, self.patch_size)
        return batch

    def _views(self, draw: Draw) -> list[int]:
        frame_ids = self.dataset.frame_ids[draw.scene]
        return draw_views(frame_ids, self.dataset.num_views, draw.anchor, draw.seed)

    def scene_tensors(
        self, draws: Sequence[Draw], views: list[list[int]], kept: list[tuple[bool, bool]] | None = None
    ) -> Batch:
        """Every key of the batch table whose first dimension is S; `kept` = (cameras, depth) shown, by default both."""
        take, place = self.prepared.take, self.prepared.place
        scene, view = place([draw.scene for draw in draws]), place(views)
        kept = kept or [(True, True)] * len(draws)
        known = place([cameras for cameras, _ in kept])
        deep = place([cameras and depth for cameras, depth in kept])
        camera = take("world_from_cam", scene, view)
        ref_from_world = self.prepared.scenes["ref_from_world"][scene, view[:, 0]]
        ref_from_cam = ref_from_world[:, None] @ camera
        points = take("points", scene, view).double() @ ref_from_cam[..., :3, :3].mT + ref_from_cam[..., None, :3, 3]
        mask = take("points_mask", scene, view) & deep[:, None, None]
        eye = torch.eye(4, device=view.device)
        return {
            "pixel_values": take("pixels", scene, view),
            "view_mask": torch.ones(view.shape, dtype=torch.bool),  # read by the model, which need not wait for it here
            "geometry_mask": known,
            "ref_from_cam": torch.where(known[:, None, None, None], ref_from_cam.float(), eye),
            "intrinsics": torch.where(known[:, None, None, None], take("intrinsics", scene, view), eye[:3, :3]),
            "depth_hist": torch.where(deep[:, None, None], take("depth_hist", scene, view), 0.0),
            "patch_points": torch.where(mask[..., None], points.float(), 0.0),
            "patch_points_mask": mask,
            "world_from_ref": torch.where(known[:, None, None], inverse(ref_from_world).float(), torch.nan),
        }

    def _text(self, draws: Sequence[Draw], views: list[list[int]], cameras: list[bool]) -> Batch:
        rows = []
        for scene, (draw, drawn) in enumerate(zip(draws, views)):
            samples = np.array([self.rows[sample] for sample in draw.samples])
            heads = self.prepared.text["head"][samples]
            visual = self.processor.num_visual_tokens(len(drawn), cameras[scene])
            for head in dict.fromkeys(heads.tolist()):
                rows.append(PackedRow(scene, self._prefix(head, visual), samples[heads == head], draw, drawn[0]))
        multiple = GRAPH_LENGTH_MULTIPLE if self.few_shapes else LENGTH_MULTIPLE
        batch = self.texts.pack(rows, self.processor.tokenizer.pad_token_id, multiple)
        if self.few_shapes:
            batch["answer_positions"] = answer_positions(batch["labels"])
        if self.prepared.device.type == "cuda":  # pinned, they are copied while the step before still computes
            batch = {key: values.pin_memory() for key, values in batch.items()}
        return batch

    def _prefix(self, head: int, visual: int) -> np.ndarray:
        placeholders = np.full(visual, self.processor.image_token_id)
        return np.concatenate([self.prepared.heads[head], placeholders, [self.vision_end]])


def answer_positions(labels: torch.Tensor) -> torch.Tensor:
    """Labels [B, T] -> int64 [K], as `answer_loss` wants them, filled up with places that hold none, one by one.

    Raises:
        ValueError: where every place holds a label.
    """
    places = torch.arange(labels.numel()).view_as(labels)[:, 1:]
    is_label = labels[:, 1:] != IGNORE_INDEX
    found, rest = places[is_label], places[~is_label]
    if not len(rest):
        raise ValueError("every token of the batch is a label: there is no question before the answers")
    missing = -len(found) % GRAPH_LABELS_MULTIPLE if len(found) else GRAPH_LABELS_MULTIPLE
    return torch.cat((found, rest[torch.arange(missing) % len(rest)]))


class DrawnScenes(TorchDataset):
    """Hands draws on to a `PreparedCollator` as they are."""

    def __init__(self, dataset: SceneDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


# ------------------------------------------------------------------------------------------------------- dense labels


def dense_labels(
    prepared: PreparedScenes, scene: torch.Tensor, views: torch.Tensor, ref_from_world: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What the patches of scenes [S] and their views [S, V] show; the boxes in the ref frame of view 0.

    Returns:
        classes, colors int64 [S, V, P] (-1 = unknown); boxes float32 [S, V, P, 8]: centre, extent (width, depth,
        height), horizontal normal, each as an action states them; boxes_mask bool [S, V, P].
    """
    thing = prepared.take("patch_thing", scene, views).long()
    flat = thing.flatten(1)
    table = {name: prepared.scenes[f"thing_{name}"][scene] for name in ("label", "color", "kind")}
    boxes, has_box = _anchor_boxes(prepared, scene, ref_from_world)
    return {
        "classes": table["label"].long().gather(1, flat).view_as(thing),
        "colors": table["color"].long().gather(1, flat).view_as(thing),
        "boxes": boxes.gather(1, flat[..., None].expand(-1, -1, 8)).view(*thing.shape, 8),
        "boxes_mask": has_box.gather(1, flat).view_as(thing),
    }


def _anchor_boxes(
    prepared: PreparedScenes, scene: torch.Tensor, ref_from_world: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [S, T, 8] of all things as actions state them (see `_FACING` in action_vggt_qwen3), and their mask."""
    kind = prepared.scenes["thing_kind"][scene].long()
    size = prepared.scenes["thing_size"][scene]
    rotation, shift = ref_from_world[:, :3, :3].float(), ref_from_world[:, None, :3, 3].float()
    center = prepared.scenes["thing_center"][scene] @ rotation.mT + shift
    axes = prepared.scenes["thing_axes"][scene] @ rotation[:, None, :2, :2].mT  # [S, T, 2, 2], rows
    to_camera = torch.nn.functional.normalize(-center[..., :2], dim=-1)
    candidates = torch.stack((axes, -axes), dim=-3).flatten(-3, -2)  # axis 0, 1, then both turned round
    best = (candidates * to_camera[..., None, :]).sum(-1).argmax(-1)
    facing = candidates.gather(-2, best[..., None, None].expand(-1, -1, 1, 2)).squeeze(-2)
    along = best % 2
    width, depth = size.gather(-1, (1 - along)[..., None]), size.gather(-1, along[..., None])
    is_plane, is_round = (kind == 1)[..., None], (kind == 2)[..., None]
    normal = torch.where(is_plane, axes[..., 1, :], torch.where(is_round, to_camera, facing))
    width = torch.where(is_plane | is_round, size[..., :1], width)
    depth = torch.where(is_plane, 0.0, torch.where(is_round, size[..., :1], depth))
    return torch.cat((center, width, depth, size[..., 2:], normal), dim=-1), kind >= 0


def ray_targets(
    prepared: PreparedScenes,
    draws: Sequence[Draw],
    views: list[list[int]],
    batch: Batch,
    num_rays: int,
    patch_size: int,
) -> dict[str, torch.Tensor]:
    """What rays through random patches meet, R a scene, and what all K patches show, whether or not the model's input
    shows the cameras.

    Returns:
        rays float32 [S, R, 6], Plücker coordinates in ref; depth float32 [S, R], metres along the ray (z-depth
        would ask for the camera's axis, which no ray tells), and depth_mask bool [S, R], True where that depth was
        measured and hidden from the input; with dense labels also those of `dense_labels`, [S, K, ...], the points
        float32 [S, K, 3] of the patches in ref, and points_mask bool [S, K].
    """
    scene, view = prepared.place([draw.scene for draw in draws]), prepared.place(views)
    ref_from_world = prepared.scenes["ref_from_world"][scene, view[:, 0]]
    pixels = batch["pixel_values"]
    geometry = SceneGeometry(
        geometry_mask=torch.ones_like(scene, dtype=torch.bool),
        ref_from_cam=(ref_from_world[:, None] @ prepared.take("world_from_cam", scene, view)).float(),
        intrinsics=prepared.take("intrinsics", scene, view),
        depth_hist=pixels.new_zeros((*view.shape, NUM_DEPTH_BINS), dtype=torch.float32),
        patch_points=prepared.take("points", scene, view),
        patch_points_mask=prepared.take("points_mask", scene, view),
        image_size=tuple(pixels.shape[-2:]),
    )
    hidden = geometry.patch_points_mask & ~batch["patch_points_mask"]
    along = {
        "rays": patch_rays(geometry, patch_size),
        "depth": geometry.patch_points.norm(dim=-1),
        "depth_mask": hidden,
    }
    generator = torch.Generator(scene.device).manual_seed(int(random_stream(draws[0], "rays").integers(2**31)))
    total = hidden.shape[1] * hidden.shape[2]
    chosen = torch.rand(len(draws), total, generator=generator, device=scene.device).topk(min(num_rays, total)).indices
    targets = {key: take_patches(value.flatten(1, 2), chosen) for key, value in along.items()}
    if prepared.has_labels:
        pose = geometry.ref_from_cam
        points = geometry.patch_points @ pose[..., :3, :3].mT + pose[..., None, :3, 3]
        there = {"points": points, "points_mask": geometry.patch_points_mask}
        there |= dense_labels(prepared, scene, view, ref_from_world)
        targets |= {key: value.flatten(1, 2) for key, value in there.items()}
    return targets


def inverse(matrices: torch.Tensor) -> torch.Tensor:
    """Inverses of matrices known to have one; looking whether they do would wait for the accelerator."""
    return torch.linalg.inv_ex(matrices).inverse
