"""Speed of training: samples and tokens a second, model FLOP utilisation, memory and the share of each part, as JSON.

    python -m benchmarks.bench_train
    python -m benchmarks.bench_train --case "--cache bfloat16" --case "--cache int8" --case "--lora 16 --checkpointing"
    python -m benchmarks.bench_train --deepspeed ds_zero3.json --case "--processes 1" --case "--processes 2" --profile

It runs train.py itself, its data pipeline included, on scenes made here: photographs and depth of random content at the
model's size in a real dataset folder, questions and answers of a given number of tokens. Weights are random. Each
`--case` adds its options to those of the command line and is a row of the figures. On a GPU the model has its full
size, otherwise a tiny one. What a step needs is counted once: what gradient checkpointing computes again is no model
FLOP. Several processes are started by torchrun, as `accelerate launch` starts them.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer

import train
from benchmarks.bench_encode import Size, count_operations
from benchmarks.train_probe import PROFILED_STEPS, ProbedTrainer, measured, profiled
from datasets_scripts.schema import SAMPLE_FEATURES, SCENE_FEATURES, write_manifest
from modeling_vggt_qwen3.configuration_vggt_qwen3 import PATCH_EMBEDDING_LAYER, VggtQwen3Config
from training import features
from training.arguments import CONFIGS
from training.assembly import build_processor, read_config
from training.collator import VISION_END, SceneCollator
from training.data import Draw, SceneDataset

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = CONFIGS / "models"
TOKENIZER = CONFIGS / "tokenizer-tiny"
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16, 10¹² operations a second, of the SXM cards, as their maker states them."""
WORD, ANSWER_WORD = " the", " chair"
NUM_DISTINCT_VIEWS = 32
MIN_SCENES = 8


# --------------------------------------------------------------------------------------------------------------- scenes


def write_dataset(root: Path, args: argparse.Namespace, most: int, num_questions: int) -> None:
    """A dataset folder of `most` scenes with `num_questions` questions each, all segments of `--tokens` tokens."""
    rng = np.random.default_rng(0)
    photographs = [_jpeg(rng, args.image_size) for _ in range(NUM_DISTINCT_VIEWS)]
    depths = [_depth(rng, args.image_size) for _ in range(NUM_DISTINCT_VIEWS)]
    focal = args.image_size * 0.8
    intrinsics = np.array([[focal, 0, args.image_size / 2], [0, focal, args.image_size / 2], [0, 0, 1.0]])
    camera = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # level, looking along +Y
    scenes = []
    for scene in range(most):
        chosen = rng.permutation(NUM_DISTINCT_VIEWS)[: args.views]
        cameras = np.tile(camera, (args.views, 1, 1))
        cameras[:, :2, 3] = rng.normal(size=(args.views, 2))
        scenes.append(
            {
                "scene_id": f"scene{scene:04d}",
                "room_id": f"scene{scene:04d}",
                "source": "benchmark",
                "frame_ids": [f"{frame:03d}" for frame in range(args.views)],
                "images": [photographs[i] for i in chosen],
                "intrinsics": [intrinsics] * args.views,
                "world_from_cam": list(cameras),
                "depth": [depths[i] for i in chosen],
                "is_metric": True,
                "is_gravity_aligned": True,
                "world_from_source": np.eye(4),
            }
        )
    question, answer = _texts(args)
    samples = [
        {
            "sample_id": f"{scene['scene_id']}-{number}",
            "scene_id": scene["scene_id"],
            "task": "scanqa",
            "question": question,
            "answers": [answer],
            "question_type": "what",
        }
        for scene in scenes
        for number in range(num_questions)
    ]
    empty = dict.fromkeys(SAMPLE_FEATURES)
    rows = [{**empty, "targets": [], **sample} for sample in samples]
    for folder, table, schema in (("scenes/train", scenes, SCENE_FEATURES), ("samples/train", rows, SAMPLE_FEATURES)):
        Dataset.from_list(table, features=schema).save_to_disk(str(root / folder))
    counts = {"scenes": {"train": {"benchmark": len(scenes)}}, "samples": {"train": {"benchmark": len(rows)}}}
    write_manifest(root, counts=counts, options={"benchmark": {}}, source_files={"benchmark": {}})


def _jpeg(rng: np.random.Generator, side: int) -> dict[str, Any]:
    """As many bytes a pixel as a photograph: coarse shapes and a little noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (side // 14, side // 14, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return {"bytes": buffer.getvalue(), "path": None}


def _depth(rng: np.random.Generator, side: int) -> dict[str, Any]:
    coarse = Image.fromarray(rng.uniform(1000, 4000, (8, 8)).astype(np.float32))
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(coarse.resize((side, side))).astype(np.uint16)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _texts(args: argparse.Namespace) -> tuple[str, str]:
    """A question and an answer that make segments of `--tokens` tokens, `--answer-tokens` of them to be learned.

    Raises:
        ValueError: for fewer tokens than the marks of the chat take.
    """
    processor = build_processor(read_config(args.model), AutoTokenizer.from_pretrained(str(TOKENIZER)))
    answer = (ANSWER_WORD * (args.answer_tokens - 1)).strip()
    messages = processor.conversation("?", num_views=1, task="scanqa")
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    behind_prefix = prompt.split(VISION_END)[1].split("?", maxsplit=1)
    marks = sum(len(processor.tokenizer(part)["input_ids"]) for part in behind_prefix)
    for count in range(1, args.tokens):
        question = (WORD * count).strip()
        text = behind_prefix[0] + question + behind_prefix[1] + answer
        if len(processor.tokenizer(text)["input_ids"]) + 1 == args.tokens:  # and the end of the turn
            return question, answer
    raise ValueError(
        f"--tokens {args.tokens} leaves no room for a question beside {args.answer_tokens} tokens of answer and "
        f"{marks} of the chat"
    )


# ----------------------------------------------------------------------------------------------------------- operations


def model_operations(
    config: VggtQwen3Config, args: argparse.Namespace, prefix: int, num_scenes: int
) -> dict[str, float]:
    """10¹² multiplications and additions of the matrix products that a step on `num_scenes` scenes needs, by part.

    Trained layers cost three times their forward pass, frozen ones below trained ones twice; attention counts the
    pairs of tokens that see each other.
    """
    vision, perceiver, text = config.vision_config, config.perceiver_config, config.text_config
    size = Size(args.views, args.image_size, args.image_size)
    patches = args.views * (args.image_size // vision.patch_size // perceiver.feature_pooling) ** 2
    dim, latents = perceiver.hidden_size, perceiver.num_latents
    channels = sum(vision.hidden_size * (1 if i == PATCH_EMBEDDING_LAYER else 2) for i in perceiver.feature_layers)
    # First layers need no gradient of their input: twice the forward pass, not three times.
    context = 2 * patches * dim * (2 * (channels + 6 + 3 + 6 * perceiver.num_point_frequencies) + 3 * dim)
    cross = 2 * dim * dim * (2 * latents + 2 * patches) + 4 * dim * latents * patches
    own = 2 * dim * dim * 4 * latents + 4 * dim * latents * latents
    mlp = 2 * 2 * dim * int(dim * perceiver.mlp_ratio) * latents
    resampler = context + 3 * (perceiver.num_hidden_layers * (cross + own + mlp) + 2 * latents * dim * text.hidden_size)
    tokens = prefix + args.questions * args.tokens
    pairs = prefix * (prefix + 1) / 2 + args.questions * (prefix * args.tokens + args.tokens * (args.tokens + 1) / 2)
    query, key_value = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    weights = text.hidden_size * (2 * query + 2 * key_value + 3 * text.intermediate_size)
    trained = 0 if args.lora else text.num_hidden_layers - args.frozen_layers
    passes = 3 * trained + 2 * (text.num_hidden_layers - trained)
    decoder = passes * 2 * weights * tokens + 3 * text.num_hidden_layers * 4 * query * pairs
    head_passes = 2 if args.lora or (args.frozen_layers and text.tie_word_embeddings) else 3
    head = head_passes * 2 * text.hidden_size * text.vocab_size * args.questions * args.answer_tokens
    encoder = 0.0 if args.cache else count_operations(vision, size)
    parts = {"encoder": encoder, "resampler": resampler / 1e12, "text": decoder / 1e12, "head": head / 1e12}
    return {part: count * num_scenes for part, count in parts.items()}


def peak_tflops() -> float | None:
    """Of this machine's GPU, None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for card, peak in PEAK_TFLOPS.items() if card in name), None)


# ---------------------------------------------------------------------------------------------------------------- cases


def settings(args: argparse.Namespace, dataset: Path, folder: Path) -> list[str]:
    """The command line of train.py."""
    steps = args.warmup + args.steps + (PROFILED_STEPS if args.profile else 0)
    values: dict[str, Any] = {
        "model": args.model,
        "tokenizer": TOKENIZER,
        "dataset": dataset,
        "output_dir": folder / "run",
        "image_size": args.image_size,
        "num_views": args.views,
        "samples_per_scene": args.questions,
        "per_device_train_batch_size": args.scenes * args.questions,
        "gradient_accumulation_steps": args.accumulation,
        "dtype": args.weights,
        "bf16": (args.weights == "float32" or args.lora > 0) and torch.cuda.is_available(),  # adapters are float32
        "gradient_checkpointing": args.checkpointing,
        "frozen_text_layers": args.frozen_layers,
        "feature_pooling": args.pooling,
        "geometry_dropout": 0,
        "depth_dropout": 0,
        "max_steps": steps,
        "warmup_steps": 0,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": steps,
        "dataloader_num_workers": args.workers,
        "dataloader_persistent_workers": args.workers > 0,
        "use_cpu": not torch.cuda.is_available() and not args.deepspeed,
    }
    if args.compile:
        values["compile_parts"] = args.compile
    if args.deepspeed:
        values["deepspeed"] = args.deepspeed
    if args.cache:
        values |= {"feature_cache": folder / f"cache-{args.cache}-{args.pooling}", "view_sets": 1}
        values |= {"feature_dtype": args.cache}
    words = []
    for key, value in values.items():
        words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def run_case(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains in this process, which may be one of several, and returns the figures of it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    scenes = args.scenes * args.accumulation * world
    steps = args.warmup + args.steps + PROFILED_STEPS
    most = max(MIN_SCENES, scenes)
    dataset = folder / f"data-{most}-{args.tokens}-{args.answer_tokens}-{args.questions}"
    if int(os.environ.get("RANK", "0")) == 0 and not dataset.exists():
        write_dataset(dataset, args, most, args.questions * -(-steps * scenes // most))
    _wait_for(dataset / "manifest.json")
    argv = settings(args, dataset, folder)
    row: dict[str, Any] = {}
    if args.cache and world == 1:
        start = time.perf_counter()
        features.main(argv)
        cache = json.loads((folder / f"cache-{args.cache}-{args.pooling}" / features.CACHE_NAME).read_text())
        row["cache_mb_a_scene"] = cache["bytes"] / most / 1e6
        row["cache_written_s"] = time.perf_counter() - start
        _free_memory()
    ProbedTrainer.warmup, ProbedTrainer.lora_rank = args.warmup, args.lora
    ProbedTrainer.frozen_layers = args.frozen_layers
    ProbedTrainer.profile_path = args.profile
    with patch.object(train, "SceneTrainer", ProbedTrainer):
        train.main(argv)
    trainer, ProbedTrainer.latest = ProbedTrainer.latest, None
    row |= measured(trainer)
    if trainer.profiler is not None and trainer.args.process_index == 0:
        row |= profiled(trainer, args.profile)
    prefix = _prefix_length(trainer)
    operations = model_operations(trainer.model.config, args, prefix, args.scenes * args.accumulation)
    row |= {"prefix_tokens": prefix, "tera_operations_a_step": operations}
    peak = peak_tflops()
    if peak:
        row["utilisation"] = sum(operations.values()) / (row["step_ms"] / 1000) / peak
    return row


def _prefix_length(trainer: ProbedTrainer) -> int:
    sampler = trainer.get_train_dataloader().batch_sampler
    draw: Draw = next(iter(sampler))[0]
    dataset: SceneDataset = trainer.train_dataset
    collator: SceneCollator = trainer.data_collator
    return int((collator([dataset[draw]])["segment_ids"][0] == 0).sum())


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.2)


def _free_memory() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_elsewhere(args: argparse.Namespace, words: list[str], folder: Path) -> dict[str, Any]:
    """The case in processes of its own; rank 0 leaves its figures in a file."""
    figures = folder / "figures.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.processes)]
    command += ["-m", "benchmarks.bench_train", *words, "--folder", str(folder), "--figures", str(figures)]
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code or not figures.is_file():
        return {"error": f"ended with code {code}; its output stands above"}
    return json.loads(figures.read_text())


# ------------------------------------------------------------------------------------------------------------- printing


def show(rows: Sequence[dict[str, Any]]) -> None:
    """One line a case."""
    for row in rows:
        print(f"\n{row['case'] or 'as the command line says'}")
        if "error" in row:
            print(f"  {row['error']}")
            continue
        use = "" if "utilisation" not in row else f", {100 * row['utilisation']:.0f} % of the peak"
        memory = "" if "peak_gb" not in row else f", {row['peak_gb']:.1f} GB at the peak"
        print(
            f"  {row['samples_per_second']:.1f} samples/s, {row['tokens_per_second']:.0f} tokens/s, "
            f"{row['step_ms']:.0f} ms a step of {row['samples_a_step']:.0f} samples{use}{memory}"
        )
        parts = {**row["parts_ms"], "waiting for data": row["data_wait_ms"]}
        for key in ("communication_ms", "communication_alone_ms", "gpu_busy_ms"):
            if key in row:
                parts[key.removesuffix("_ms").replace("_", " ")] = row[key]
        print("  ms a step: " + ", ".join(f"{part} {value:.1f}" for part, value in parts.items()))
        if "efficiency" in row:
            print(f"  {100 * row['efficiency']:.0f} % of the first row's samples/s, a process")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def make_parser() -> argparse.ArgumentParser:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description="Speed of training, measured on train.py itself.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--case", action="append", help="further options of one row; may be given several times")
    model = MODELS / ("vggt-1b-qwen3-4b.json" if on_gpu else "tiny.json")
    parser.add_argument("--model", default=str(model), help="configuration JSON of the model")
    parser.add_argument("--views", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--image-size", type=int, default=448 if on_gpu else 56, help="pixels of a side")
    parser.add_argument("--scenes", type=int, default=4 if on_gpu else 2, help="scenes a batch and process")
    parser.add_argument("--questions", type=int, default=16 if on_gpu else 4, help="questions a scene")
    parser.add_argument("--tokens", type=int, default=40, help="of a question and its answer, marks of the chat too")
    parser.add_argument("--answer-tokens", type=int, default=10, help="of these, tokens to learn")
    parser.add_argument("--accumulation", type=int, default=1, help="batches an optimizer step")
    parser.add_argument("--cache", choices=features.FEATURE_DTYPES, help="read features from a cache of this dtype")
    parser.add_argument("--pooling", type=int, default=1, help="side of the squares of patches that are averaged")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters on q, k, v, o in place of text weights")
    parser.add_argument("--frozen-layers", type=int, default=0, help="bottom decoder layers kept frozen")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument(
        "--weights",
        default="bfloat16" if on_gpu else "float32",
        help="dtype of weights and optimizer states; float32 on a GPU means bfloat16 arithmetic by autocast",
    )
    parser.add_argument("--compile", nargs="*", default=["vision"] if on_gpu else [], help="parts to compile")
    parser.add_argument("--deepspeed", help="DeepSpeed configuration, here or in configs/")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4 if on_gpu else 0, help="loader processes a training process")
    parser.add_argument("--warmup", type=int, default=4, help="steps before those measured")
    parser.add_argument("--steps", type=int, default=15 if on_gpu else 3, help="steps measured")
    parser.add_argument("--profile", type=Path, help="file for a table of the operations of two further steps")
    parser.add_argument("--folder", type=Path, help="where data and caches are made, and kept; by default temporary")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/train.json"), help="all figures")
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures every case that the command line names, prints the figures and returns them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    args = parser.parse_args(words)
    if args.figures:  # one of several processes that `run_elsewhere` started
        row = run_case(args, args.folder)
        if int(os.environ["RANK"]) == 0:
            args.figures.write_text(json.dumps(row), encoding="utf-8")
        return row
    rows: list[dict[str, Any]] = []
    common = _without_cases(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for case in args.case or [""]:
            case_words = [*common, *shlex.split(case)]
            case_args = parser.parse_args(case_words)
            separate = case_args.processes > 1 or case_args.deepspeed
            row = run_elsewhere(case_args, case_words, folder) if separate else run_case(case_args, folder)
            rows.append({"case": case, "processes": case_args.processes, **row})
            if "error" not in row and "error" not in rows[0]:
                rate = row["samples_per_second"] / case_args.processes
                rows[-1]["efficiency"] = rate / (rows[0]["samples_per_second"] / rows[0]["processes"])
            show(rows[-1:])
            figures = {"machine": describe_machine(), "command": shlex.join(words), "rows": rows}
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            _free_memory()
    return figures


def _without_cases(words: list[str]) -> list[str]:
    places = [index for index, word in enumerate(words) if word == "--case"]
    return [word for index, word in enumerate(words) if index not in places and index - 1 not in places]


if __name__ == "__main__":
    main()
