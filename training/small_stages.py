"""What stages 0 to 2 of a small model add to a training: prepared data, the encoder's own stage, the ray decoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from datasets_scripts.rooms.catalogue import CLASSES
from modeling_vggt_qwen3.modeling_rays import RayDecoder
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .arguments import DataArguments, ModelArguments, SceneTrainingArguments
from .data import SceneDataset
from .prepare import COLOR_NAMES, prepare
from .prepared import PreparedCollator, PreparedScenes
from .reconstruction import DenseReconstruction, ReconstructionTrainer

PLACES = ("cpu", "device")

logger = logging.getLogger(__name__)


def prepared_scenes(
    dataset: SceneDataset, processor: VggtQwen3Processor, data_args: DataArguments, args: SceneTrainingArguments
) -> PreparedScenes | None:
    """The arrays of a dataset where `prepare_data` asks for them, made by the first process.

    Raises:
        ValueError: for settings that prepared data would not follow.
    """
    if data_args.prepare_data is None:
        return None
    if data_args.prepare_data not in PLACES:
        raise ValueError(f"prepare_data is {data_args.prepare_data!r}; wanted one of {', '.join(PLACES)}, or nothing")
    unread = {"view_dropout": data_args.view_dropout > 0, "feature_cache": data_args.feature_cache is not None}
    unread["pack_questions: false"] = not data_args.pack_questions
    if any(unread.values()):
        names = ", ".join(name for name, is_set in unread.items() if is_set)
        raise ValueError(f"prepare_data does not follow {names}: leave one of them out")
    everything = SceneDataset(dataset.roots, dataset.split, dataset.num_views)  # so that all stages share the arrays
    with args.main_process_first(desc="preparing data"):
        folder = prepare(everything, processor, Path(data_args.prepared_dir))
    return PreparedScenes(folder, args.device if data_args.prepare_data == "device" else "cpu")


def train_encoder(
    model: VggtQwen3ForConditionalGeneration,
    processor: VggtQwen3Processor,
    dataset: SceneDataset,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    run_config: dict[str, Any],
) -> ReconstructionTrainer:
    """Stage 0: trains the encoder of the model's configuration by dense labels and saves it with its heads.

    Raises:
        ValueError: for data without dense labels.
    """
    prepared = prepared_scenes(dataset, processor, data_args, args)
    if prepared is None or not prepared.has_labels:
        raise ValueError(
            "objective: reconstruction wants dense labels: build the rooms with --dense-labels and set prepare_data"
        )
    config = model.config.vision_config
    reconstruction = VggtForReconstruction(config)
    if "vision" in model_args.compile_parts:
        reconstruction.vggt.compile_blocks()
    layers = [layer for layer in model.config.perceiver_config.feature_layers if layer >= 0]
    trainer = ReconstructionTrainer(
        model=DenseReconstruction(reconstruction, layers),
        args=args,
        collator=PreparedCollator(prepared, dataset, processor, model.config.task_names),
        samples_per_scene=data_args.samples_per_scene,
        run_config=run_config,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    logger.info("saved to %s", args.output_dir)
    return trainer


def add_ray_decoder(
    model: VggtQwen3ForConditionalGeneration, args: ModelArguments, prepared: PreparedScenes | None
) -> list[TrainerCallback]:
    """Gives the model a ray decoder where a setting wants one; returns what ends its label loss in time.

    Raises:
        ValueError: where nothing would make its targets, or for labels of latents that begin at no single patch.
    """
    if not args.geometry_consistency and not args.latent_labels:
        return []
    if prepared is None:
        raise ValueError("geometry_consistency and latent_labels want targets for the latents: set prepare_data")
    if args.latent_labels and not prepared.has_labels:
        raise ValueError("latent_labels wants dense labels: build the rooms with --dense-labels, or leave it out")
    if args.latent_labels and model.config.perceiver_config.latent_start != "spread":
        raise ValueError(
            "latent_labels asks each latent about the patch that it began at: train from a model's JSON with "
            f"perceiver_config.latent_start = spread, which {args.model} is not, or leave latent_labels out"
        )
    if args.latent_labels and model.config.perceiver_config.feature_pooling != 1:
        raise ValueError("latent_labels are those of single patches: set perceiver_config.feature_pooling to 1")
    sizes = {"num_classes": len(CLASSES), "num_colors": len(COLOR_NAMES)} if args.latent_labels else {}
    weights = {"depth_weight": args.geometry_consistency, "label_weight": args.latent_labels}
    decoder = model.add_ray_decoder(RayDecoder(model.config.text_config.hidden_size, **sizes, **weights))
    return [EndOfLabels(decoder, args.latent_labels_until)]


class EndOfLabels(TrainerCallback):
    """Sets the weight of the labels read from the latents to 0 after a share of all steps."""

    def __init__(self, decoder: nn.Module, share: float) -> None:
        self.decoder, self.share = decoder, share

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the step, so that a resumed run agrees."""
        if state.global_step >= self.share * state.max_steps:
            self.decoder.label_weight = 0.0
