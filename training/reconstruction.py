"""Stage 0 of tiny models: the encoder learns geometry and semantics from the renderer, as the real one was pretrained.

The encoder's own camera, depth and point heads learn in the frame of view 0 (Wang et al., "VGGT", CVPR 2025, but in
metres). Heads for the class, colour, point and box of every patch serve training alone and are not part of the result;
point and box in the frame of view 0 want all views together, depth and box as the patch's own view sees them do not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.modeling_outputs import ModelOutput
from transformers.trainer import TRAINING_ARGS_NAME

from datasets_scripts.rooms.catalogue import CLASSES
from modeling_vggt_qwen3.modeling_rays import BOX_NUMBERS, label_losses, masked_mean, smooth_l1
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction, pose_encoding_from_cameras

from .arguments import SceneTrainingArguments
from .callbacks import ProgressLines, RunLog, mean_parts
from .data import Draw, draw_views
from .graphed_step import GraphedStep, begin_step
from .prepare import COLOR_NAMES
from .prepared import DrawnScenes, PreparedCollator, dense_labels, inverse
from .trainer import RUN_CONFIG, SceneLoader, graphs_wanted

SIZES = (len(CLASSES), len(COLOR_NAMES), BOX_NUMBERS, 3, BOX_NUMBERS, 1)
HIDDEN = 384
CONFIDENCE_WEIGHT = 0.2
"""Weight of the log of the predicted confidence, as in the source."""
WEIGHTS = {"camera": 0.5, "depth": 0.1, "points": 0.1}
"""Of what has gradients many times the others': at weight 1 the clipped steps would be theirs (docs/rooms.md)."""


class DenseReconstruction(nn.Module):
    """The encoder with its heads, and the heads of patches that only training needs.

    Args:
        reconstruction: what learns and is kept.
        layers: encoder layers whose patch tokens the patch heads read, joined.
        map_scenes: scenes of a batch that pass the heads of full-size maps, which cost most.
    """

    def __init__(self, reconstruction: VggtForReconstruction, layers: list[int], map_scenes: int = 4) -> None:
        super().__init__()
        self.reconstruction, self.layers, self.map_scenes = reconstruction, layers, map_scenes
        width = 2 * reconstruction.config.hidden_size * len(layers)
        self.patch_heads = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, sum(SIZES))
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        pose_enc: torch.Tensor,
        depth: torch.Tensor,
        points: torch.Tensor,
        labels: dict[str, torch.Tensor],
        patch_points: torch.Tensor,
        patch_depth: torch.Tensor,
        patch_points_mask: torch.Tensor,
    ) -> ModelOutput:
        """Loss of S scenes.

        Args:
            pixel_values: uint8 [S, V, 3, H, W].
            pose_enc: float32 [S, V, 9], cameras relative to view 0, metres.
            depth: float32 [s, V, H, W] of the first s scenes, metres, 0 = unknown; points [s, V, H, W, 3] in view 0.
            labels: see `dense_labels`; and view_boxes, the boxes in each view's own ref frame.
            patch_points, patch_depth: float32 [S, V, P, 3] in ref and [S, V, P] in the camera, metres, and their mask
                bool [S, V, P].
        """
        model, count = self.reconstruction, len(depth)
        wanted = sorted({*self.layers, *model.config.dpt_layers})
        outputs = model.vggt(pixel_values, feature_layers=wanted)
        maps = {layer: tokens[:, :, outputs.patch_start_idx :] for layer, tokens in outputs.feature_maps.items()}
        tokens = [maps[layer] for layer in self.layers]
        losses = self._patch_losses(tokens, labels, patch_points, patch_depth, patch_points_mask)
        poses = model._estimate_poses(outputs.last_hidden_state[:, :, 0], None)
        losses["camera"] = sum(
            0.6 ** (len(poses) - 1 - i) * F.smooth_l1_loss(pose, pose_enc, beta=0.1) for i, pose in enumerate(poses)
        )
        chosen = [maps[layer][:count] for layer in model.config.dpt_layers]
        size = tuple(pixel_values.shape[-2:])
        known = depth > 0
        predicted, confidence = model._predict_dense(model.depth_head, chosen, size)
        losses["depth"] = _confident_l1(predicted.exp(), depth[..., None], confidence, known)
        predicted, confidence = model._predict_dense(model.point_head, chosen, size)
        losses["points"] = _confident_l1(predicted.sign() * predicted.abs().expm1(), points, confidence, known)
        loss = sum(WEIGHTS.get(name, 1.0) * value for name, value in losses.items())
        return ModelOutput(loss=loss, losses={k: v.detach() for k, v in losses.items()})

    def _patch_losses(
        self,
        maps: list[torch.Tensor],
        labels: dict[str, torch.Tensor],
        patch_points: torch.Tensor,
        patch_depth: torch.Tensor,
        mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        tokens = torch.cat(maps, dim=-1).to(self.patch_heads[1].weight.dtype)
        classes, colors, boxes, points, view_boxes, depth = self.patch_heads(tokens).float().split(SIZES, dim=-1)
        log_depth_error = (depth.squeeze(-1) - patch_depth.clamp_min(1e-3).log()).abs()
        return {
            **label_losses(classes, colors, boxes, labels),
            "view_box": masked_mean(smooth_l1(view_boxes, labels["view_boxes"]), labels["boxes_mask"]),
            "patch_points": masked_mean(smooth_l1(points, patch_points), mask),
            "patch_depth": masked_mean(log_depth_error, mask),
        }


def _confident_l1(
    predicted: torch.Tensor, target: torch.Tensor, confidence: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Mean of confidence · |error| - weight · log confidence over the known pixels."""
    error = (predicted - target).abs().mean(-1)
    values = confidence * error - CONFIDENCE_WEIGHT * confidence.log()
    return torch.where(known, values, 0.0).sum() / known.sum().clamp_min(1)


class ReconstructionSampler(Sampler[list[Draw]]):
    """Batches of scenes, each at most once an epoch, in an order and with views that seed and epoch decide.

    Raises:
        ValueError: for fewer scenes than one step of all ranks takes.
    """

    def __init__(self, num_scenes: int, scenes_per_batch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if num_scenes < scenes_per_batch * world_size:
            raise ValueError(
                f"{num_scenes} scenes are fewer than a step takes: {scenes_per_batch} on each of {world_size} "
                "process(es); build more, or lower per_device_train_batch_size"
            )
        self.num_scenes, self.scenes_per_batch, self.seed, self.epoch = num_scenes, scenes_per_batch, seed, 0
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Draws anew."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_scenes // (self.scenes_per_batch * self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_scenes).tolist()
        for batch in range(self.rank, len(self) * self.world_size, self.world_size):
            rows = order[batch * self.scenes_per_batch : (batch + 1) * self.scenes_per_batch]
            yield [Draw(row, (), None, (self.seed, self.epoch, row)) for row in rows]


class ReconstructionCollator:
    """Draws -> the arguments of `DenseReconstruction.forward`."""

    def __init__(self, collator: PreparedCollator, map_scenes: int) -> None:
        self.collator, self.map_scenes = collator, map_scenes
        self.dataset, self.prepared = collator.dataset, collator.prepared

    def __call__(self, draws: list[Draw]) -> dict[str, Any]:
        frames, count = self.dataset.frame_ids, self.dataset.num_views
        views = [draw_views(frames[draw.scene], count, None, draw.seed) for draw in draws]
        batch = self.collator.scene_tensors(draws, views)
        scene, view = self.prepared.place([draw.scene for draw in draws]), self.prepared.place(views)
        camera = self.prepared.take("world_from_cam", scene, view)
        first_from_cam = (inverse(camera[:, :1]) @ camera).float()
        size = tuple(batch["pixel_values"].shape[-2:])
        cam_from_first = inverse(first_from_cam)[..., :3, :]
        depth = self.prepared.take("depth_mm", scene, view)[: self.map_scenes].float() / 1000
        return {
            "pixel_values": batch["pixel_values"],
            "pose_enc": pose_encoding_from_cameras(cam_from_first, batch["intrinsics"], size),
            "depth": depth,
            "points": _unproject(depth, batch["intrinsics"][: self.map_scenes], first_from_cam[: self.map_scenes]),
            "labels": self._labels(scene, view),
            "patch_points": batch["patch_points"],
            "patch_depth": self.prepared.take("points", scene, view)[..., 2],
            "patch_points_mask": batch["patch_points_mask"],
        }

    def _labels(self, scene: torch.Tensor, view: torch.Tensor) -> dict[str, torch.Tensor]:
        frames = self.prepared.take("ref_from_world", scene, view)
        labels = dense_labels(self.prepared, scene, view, frames[:, 0])
        alone = dense_labels(
            self.prepared, scene[:, None].expand_as(view).reshape(-1), view.reshape(-1, 1), frames.flatten(0, 1)
        )
        return {**labels, "view_boxes": alone["boxes"].view_as(labels["boxes"])}


def _unproject(depth: torch.Tensor, intrinsics: torch.Tensor, first_from_cam: torch.Tensor) -> torch.Tensor:
    """Points [s, V, H, W, 3] of depth maps [s, V, H, W]; pixel centres at +0.5."""
    height, width = depth.shape[-2:]
    v, u = torch.meshgrid(
        torch.arange(height, device=depth.device) + 0.5, torch.arange(width, device=depth.device) + 0.5, indexing="ij"
    )
    pixels = torch.stack((u, v, torch.ones_like(u)), dim=-1).flatten(0, 1)  # [H * W, 3]
    rays = pixels @ inverse(intrinsics).mT
    points = (rays * depth.flatten(2)[..., None]) @ first_from_cam[..., :3, :3].mT + first_from_cam[..., None, :3, 3]
    return points.unflatten(2, (height, width))


class ReconstructionTrainer(Trainer):
    """The library's Trainer over prepared scenes; at its end it saves the encoder with its own heads.

    Raises:
        ValueError: for checkpoints on the way, or a run to resume: this stage takes minutes and has none.
    """

    def __init__(
        self,
        model: DenseReconstruction,
        args: SceneTrainingArguments,
        collator: PreparedCollator,
        samples_per_scene: int,
        run_config: dict[str, Any],
    ) -> None:
        if args.save_strategy != "no" or args.resume_from_checkpoint:
            raise ValueError(
                "objective: reconstruction keeps no checkpoints on the way and resumes from none: set save_strategy to "
                "'no' and leave resume_from_checkpoint out"
            )
        self.run_config = run_config
        self.scenes_per_batch = max(1, args.per_device_train_batch_size // samples_per_scene)
        self.collator_of_scenes = collator
        super().__init__(model=model, args=args, train_dataset=collator.dataset)
        for other in (ProgressCallback, PrinterCallback):
            self.remove_callback(other)
        for callback in (ProgressLines(), RunLog()):
            self.add_callback(callback)
        self.graphs = GraphedStep(self._compute, model) if graphs_wanted(args) else None
        self._recent: list[dict[str, torch.Tensor]] = []
        self._clock = (0, time.monotonic())

    def get_train_dataloader(self) -> SceneLoader:
        dataset = self.collator_of_scenes.dataset
        return SceneLoader(
            DrawnScenes(dataset),
            batch_sampler=ReconstructionSampler(
                len(dataset.scenes),
                self.scenes_per_batch,
                self.args.seed,
                rank=self.args.process_index,
                world_size=self.args.world_size,
            ),
            collate_fn=ReconstructionCollator(self.collator_of_scenes, self.model.map_scenes),
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Trainer.training_step`."""
        if self.graphs is None:
            return super().training_step(model, inputs, *args, **kwargs)
        begin_step(self, model)
        numbers = self.graphs(self._prepare_inputs(inputs))
        loss = numbers.pop("loss")
        self._recent.append(numbers)
        return loss

    def _compute(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Forward and backward for the graph."""
        with self.compute_loss_context_manager():
            outputs = self.model_wrapped(**inputs)
        self.accelerator.backward(outputs.loss)
        return {"loss": outputs.loss, **outputs.losses}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = model(**inputs)
        self._recent.append(outputs.losses)
        return outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each part of the loss since the last log, scenes a second and the remaining seconds."""
        if "loss" in logs and self._recent:
            logs |= mean_parts(self._recent)
            step, (last_step, last_time) = self.state.global_step, self._clock
            seconds = max(time.monotonic() - last_time, 1e-9)
            scenes = len(self._recent) * self.scenes_per_batch * self.args.world_size
            logs["samples_per_second"] = round(scenes / seconds, 1)
            logs["eta_s"] = round((self.state.max_steps - step) * seconds / max(1, step - last_step))
            self._recent.clear()
            self._clock = (step, time.monotonic())
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        model.reconstruction.save_pretrained(folder)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        (folder / RUN_CONFIG).write_text(yaml.safe_dump(self.run_config, sort_keys=False), encoding="utf-8")
