"""Every setting of a run: three dataclasses, from a YAML file and the command line, each key known or refused."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser, TrainingArguments

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
LAUNCH_ONLY = {"config", "local_rank"}
BYPASSED = {
    "average_tokens_across_devices": "the loss is always summed over all devices",
    "auto_find_batch_size": "set per_device_train_batch_size",
    "data_seed": "seed decides the order of data too",
    "dataloader_drop_last": "batches are whole by construction",
    "debug": "`train.py --debug`, without a value, tries everything in 100 small steps",
    "do_eval": "use eval_strategy, or eval.py",
    "do_predict": "use eval.py",
    "do_train": "train.py always trains",
    "fsdp": "use --deepspeed ds_zero2.json or ds_zero3.json; FSDP has not been made to work with this model",
    "fsdp_config": "use --deepspeed ds_zero2.json or ds_zero3.json",
    "label_names": "the labels are the batch table's",
    "label_smoothing_factor": "the loss of the answers is a plain cross-entropy",
    "length_column_name": "batches are grouped by scene",
    "logging_nan_inf_filter": "a loss that is no number ends the run, by name of its scenes",
    "load_best_model_at_end": "every checkpoint loads by itself: evaluate those you want to compare",
    "push_to_hub": "use hub_upload",
    "remove_unused_columns": "samples are not columns",
    "train_sampling_strategy": "batches are grouped by scene",
}
"""Arguments of the library's Trainer that this one does not follow, and what to do instead."""


@dataclass
class ModelArguments:
    """The model: a checkpoint to go on from, or a configuration to begin with."""

    model: str = field(
        default=str(CONFIGS / "models" / "tiny.json"),
        metadata={"help": "Checkpoint folder or Hub id; or a configuration JSON, for a model from random weights."},
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "With a configuration JSON, the size of its text model: Qwen3-0.6B, -1.7B, -4B or -8B."},
    )
    tokenizer: str = field(
        default=str(CONFIGS / "tokenizer-tiny"),
        metadata={"help": "Tokenizer folder or Hub id, used only with a configuration JSON."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels of the views. Default: the checkpoint's, or the encoder's own."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Of the weights that learn. With --bf16 or DeepSpeed the arithmetic is bf16 all the same."},
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, flash_attention_2 or eager."})
    compile_parts: list[str] = field(
        default_factory=list, metadata={"help": "Parts whose blocks are compiled, for speed: vision, resampler, text."}
    )
    feature_pooling: int | None = field(
        default=None,
        metadata={"help": "Side of the squares of patches whose features are averaged. Default: the model's own."},
    )
    trainable_parts: list[str] = field(
        default_factory=lambda: ["resampler", "geometry_tokens", "text"],
        metadata={"help": "Parts that learn: vision, resampler, geometry_tokens, text. The others are frozen."},
    )
    frozen_text_layers: int = field(default=0, metadata={"help": "Bottom decoder layers kept frozen."})
    lora_rank: int = field(
        default=0,
        metadata={"help": "Rank of adapters through which the text model learns; 0 = it learns whole."},
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapters. Default: twice the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_targets: list[str] = field(
        default_factory=lambda: list(LORA_TARGETS),
        metadata={"help": "Linear layers of a decoder layer that get adapters."},
    )
    task_weights: dict | str | None = field(
        default=None, metadata={"help": "Weight of each task's loss, as JSON: '{\"scanqa\": 1.0}'."}
    )
    objective: str = field(
        default="answers",
        metadata={"help": "answers, or reconstruction: the encoder alone, by dense labels (stage 0 of tiny models)."},
    )
    vision_checkpoint: str | None = field(
        default=None, metadata={"help": "With a configuration JSON: encoder weights of a reconstruction run."}
    )
    geometry_consistency: float = field(
        default=0.0, metadata={"help": "Weight of log depth, read by rays from the latents where the input hides it."}
    )
    latent_labels: float = field(
        default=0.0, metadata={"help": "Weight of class, colour, box and point of the patches that latents begin at."}
    )
    latent_labels_until: float = field(
        default=1.0, metadata={"help": "Share of all steps after which latent_labels ends."}
    )

    def __post_init__(self) -> None:
        self.task_weights = _number_table("task_weights", self.task_weights)
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; wanted 0 for none, or more")
        if self.lora_rank and self.model.endswith(".json"):
            raise ValueError(
                f"lora_rank is {self.lora_rank}, but model is {self.model}: adapters are saved alone and name the "
                "checkpoint they belong to, and random weights have none; name a checkpoint, or train the text whole"
            )
        if self.latent_labels_until != 1.0 and not self.latent_labels:
            raise ValueError(
                f"latent_labels_until is {self.latent_labels_until} and would not be read: latent_labels is 0; "
                "leave it at 1, or set latent_labels"
            )
        unread = [name for name in ("lora_alpha", "lora_dropout") if getattr(self, name) and not self.lora_rank]
        unread += ["lora_targets"] if not self.lora_rank and self.lora_targets != list(LORA_TARGETS) else []
        if unread:
            raise ValueError(f"{', '.join(unread)} would not be read: lora_rank is 0; set it too, such as 16")

    def adapter_settings(self) -> dict[str, Any]:
        """As `adapters.add_adapters` takes them."""
        return {
            "parts": self.trainable_parts,
            "frozen_text_layers": self.frozen_text_layers,
            "rank": self.lora_rank,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "targets": self.lora_targets,
        }


@dataclass
class DataArguments:
    """The data: built dataset folders, and how scenes, views and questions are drawn from them."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "Built dataset folders. Default: data/rooms, made on first use."},
    )
    tasks: list[str] | None = field(default=None, metadata={"help": "Keep only these tasks."})
    task_mix: dict | str | None = field(
        default=None, metadata={"help": "Share of each task among the drawn scenes, summing to 1, as JSON."}
    )
    eval_split: str = field(default="val", metadata={"help": "Split that evaluation during training reads."})
    num_views: int = field(default=8, metadata={"help": "Views drawn of each scene."})
    samples_per_scene: int = field(default=8, metadata={"help": "Questions that share one encoding of their scene."})
    pack_questions: bool = field(
        default=True, metadata={"help": "Join the questions about a scene into one row: their prefix is computed once."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Keep only the first training samples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Keep only the first evaluation samples."})
    eval_generate_samples: int = field(
        default=0, metadata={"help": "Evaluation samples also answered by generation and scored; 0 = the loss alone."}
    )
    eval_max_new_tokens: int = field(default=160, metadata={"help": "Longest answer generated in evaluation."})
    geometry_dropout: float = field(default=0.3, metadata={"help": "Chance that a scene hides cameras and depth."})
    depth_dropout: float = field(default=0.3, metadata={"help": "Chance that a scene hides its depth."})
    view_dropout: float = field(default=0.0, metadata={"help": "Chance that a view is left out; view 0 always stays."})
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder of `python -m training.features`: its features replace the images."}
    )
    view_sets: int = field(default=4, metadata={"help": "Sets of views that the feature cache holds of each scene."})
    feature_dtype: str = field(default="bfloat16", metadata={"help": "Of the feature cache: bfloat16 or int8."})
    any_answer: bool = field(
        default=True, metadata={"help": "Learn any accepted answer, drawn anew each time; false = the first."}
    )
    prepare_data: str | None = field(
        default=None,
        metadata={"help": "Decode and tokenise everything once: cpu or device says where it lies. For small views."},
    )
    prepared_dir: str = field(default="outputs/prepared", metadata={"help": "Where prepare_data keeps its arrays."})
    num_rays: int = field(default=256, metadata={"help": "Rays a scene that ask the latents."})

    def __post_init__(self) -> None:
        self.task_mix = _number_table("task_mix", self.task_mix)
        if self.num_rays < 1:
            raise ValueError(f"num_rays is {self.num_rays}; wanted at least 1")


@dataclass
class SceneTrainingArguments(TrainingArguments):
    """The Trainer's arguments, with defaults for the embedded example, and a learning rate for each part."""

    output_dir: str = field(default="outputs/demo", metadata={"help": "Folder of the run."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Samples a batch and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Samples a batch and device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of every part without a rate of its own."})
    text_learning_rate: float | None = field(default=None, metadata={"help": "Of the text model."})
    vision_learning_rate: float | None = field(default=None, metadata={"help": "Of the encoder, where it trains."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of all learning rates."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 a share of all steps."})
    weight_decay: float = field(default=0.1, metadata={"help": "On matrices; never on norms and biases."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient norm above which gradients are scaled down."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged losses."})
    save_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    save_steps: float = field(default=200, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 (the parser takes the order literally)
        default="tensorboard", metadata={"help": "Loggers, or none."}
    )
    seed: int = field(default=0, metadata={"help": "Of weights, order of data, views and dropouts."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint folder, or `latest`: the newest of output_dir, if there is one."}
    )
    safe: bool = field(
        default=False, metadata={"help": "Fit batch and accumulation to the memory; a step keeps its samples."}
    )
    cuda_graphs: bool = field(
        default=False,
        metadata={"help": "Record steps on prepared data as CUDA graphs: small models spend most time on launches."},
    )
    debug: str = field(
        default="", metadata={"help": "Alone, without a value: try everything once, in 100 small steps."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Not used: such losses end the run."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: samples are not columns."})

    def __post_init__(self) -> None:
        if isinstance(self.deepspeed, str) and self.deepspeed:
            self.deepspeed = str(find_config(self.deepspeed))
        if self.deepspeed and self.accelerator_config is None and PartialState._shared_state:
            self.accelerator_config = {"use_configured_state": True}  # the state that prepare_process made
        self._refuse_bypassed()
        super().__post_init__()

    @property
    def device(self) -> torch.device:
        """See the library; a CPU has no number, with which transformers 5.17 cannot resume several processes."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def step_conditions(self) -> dict[str, int]:
        """What a run that resumes must agree with, see `checkpoints.check_resumable`; zero_stage 0 = no DeepSpeed."""
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return {
            "samples_per_step": batch * self.world_size,
            "world_size": self.world_size,
            "zero_stage": self.deepspeed_plugin.zero_stage if self.deepspeed else 0,
        }

    def load_joined_states(self) -> None:
        """Has DeepSpeed resume from whole states, see `reshaping.join_states`."""
        self.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True

    def _refuse_bypassed(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        changed = [name for name in BYPASSED if name in defaults and getattr(self, name) != defaults[name]]
        if changed:
            raise ValueError("; ".join(f"{name} is not followed: {BYPASSED[name]}" for name in changed))


DEBUG_SETTINGS = {
    "max_steps": 100,
    "samples_per_scene": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "max_eval_samples": 16,
    "eval_generate_samples": 4,
    "eval_max_new_tokens": 16,
    "save_strategy": "steps",
}
"""What `--debug` sets in front of the user's own words: a run in which everything happens once."""

ARGUMENT_CLASSES = (ModelArguments, DataArguments, SceneTrainingArguments)
FIELD_TYPES = {
    field.name: getattr(field.type, "__name__", str(field.type))
    for cls in ARGUMENT_CLASSES
    for field in dataclasses.fields(cls)
}
"""As they are declared: the library's parser overwrites those of the classes."""


def parse_arguments(
    argv: list[str] | None = None,
) -> tuple[ModelArguments, DataArguments, SceneTrainingArguments]:
    """Reads `--config FILE.yaml` first, then the command line, which wins.

    Raises:
        ValueError: for unknown keys of the YAML or the command line, all at once, each with the nearest known one.
        FileNotFoundError: for a configuration that is neither here nor in `configs/`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        ARGUMENT_CLASSES, description="Trains the model; see docs/training.md.", allow_abbrev=False
    )
    parser.add_argument("--config", help="YAML file of settings, here or in configs/.")
    config_path = _config_of(argv)
    if config_path is not None:
        parser.set_defaults(**read_yaml(config_path))
    *parsed, _, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    options = [word.lstrip("-").split("=")[0] for word in unknown if word.startswith("-")]
    if options:
        _refuse_unknown("the command line", options)
    if unknown:
        raise ValueError(f"the command line has {unknown} behind no option; a file of settings goes behind --config")
    return tuple(parsed[:3])


def debug_words(argv: list[str]) -> list[str]:
    """The command line of a trial run: small settings, then the user's, in a folder of its own."""
    config = [] if _config_of(argv) is None else ["--config", _config_of(argv)]
    words = [*config, *(word for key, value in DEBUG_SETTINGS.items() for word in (f"--{key}", str(value)))]
    args = parse_arguments([*words, *argv])[2]
    half = str(max(1, args.max_steps // 2))
    words += ["--eval_steps", half, "--save_steps", half]
    return [*words, *argv, "--output_dir", f"{args.output_dir.rstrip('/')}-debug"]


def uses_deepspeed(argv: list[str]) -> bool:
    """Whether the command line or its YAML asks for DeepSpeed; known before the arguments can be built."""
    if any(word == "--deepspeed" or word.startswith("--deepspeed=") for word in argv):
        return True
    config_path = _config_of(argv)
    return bool(config_path and read_yaml(config_path).get("deepspeed"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file, every key checked.

    Raises:
        ValueError: for a file that is no mapping, or with unknown keys.
    """
    path = find_config(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}; wanted a mapping of settings")
    unknown = [key for key in settings if key not in known_keys()]
    if unknown:
        _refuse_unknown(str(path), unknown)
    _check_types(str(path), settings)
    return settings


def find_config(name: str | Path) -> Path:
    """The file itself, or the file of that name in `configs/`.

    Raises:
        FileNotFoundError: naming both places.
    """
    for path in (Path(name), CONFIGS / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {name} here and none in {CONFIGS}")


def known_keys() -> set[str]:
    """Every key that a YAML file may hold."""
    fields = {f.name for cls in ARGUMENT_CLASSES for f in dataclasses.fields(cls) if f.init}
    return fields - LAUNCH_ONLY - set(BYPASSED)


def _check_types(where: str, settings: dict[str, Any]) -> None:
    """Refuses lists, whole numbers and switches that the file states otherwise; the command line converts its own."""
    wanted = {"list[str]": list, "int": int, "bool": bool}
    faults = []
    for key, value in settings.items():
        kind = wanted.get(FIELD_TYPES[key].removesuffix(" | None"))
        optional = FIELD_TYPES[key].endswith("None") and value is None
        if kind and not optional and type(value) is not kind:
            faults.append(f"{key} is {value!r}, wanted {kind.__name__}")
    if faults:
        raise ValueError(f"{where}: " + "; ".join(faults))


def _number_table(name: str, value: dict[str, float] | str | None) -> dict[str, float] | None:
    """A mapping of names to numbers, from YAML as it is or from the command line as JSON."""
    try:
        table = json.loads(value) if isinstance(value, str) else value
        return None if table is None else {str(key): float(number) for key, number in table.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{name} is {value!r}; wanted names and numbers, such as {{"scanqa": 0.7}}') from error


def _config_of(argv: list[str]) -> str | None:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def _refuse_unknown(where: str, keys: list[str]) -> None:
    hints = []
    for key in keys:
        nearest = difflib.get_close_matches(str(key), sorted(known_keys()), n=1)
        hint = BYPASSED.get(str(key)) or (f"did you mean {nearest[0]}?" if nearest else "nothing is called so")
        hints.append(f"{key} ({hint})")
    raise ValueError(f"{where} has settings that nothing reads: {', '.join(hints)}")
