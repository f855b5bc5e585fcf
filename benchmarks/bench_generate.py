"""From photographs to answers: time to the first token, tokens a second, whole answers, memory; as JSON and a plot.

    python -m benchmarks.bench_generate
    python -m benchmarks.bench_generate --variants plain,compiled --views 8 --batch 1,16 --check --profile

On a GPU the model has its full size in bfloat16, otherwise it is the tiny one. Weights are random. Photographs are
arrays in memory; every time includes the processor. All questions of a batch are about one scene, and each repetition
asks others. Variants: the library's loop (plain), the same with its static cache (static), `fast=True` (fast), after
`compile_for_generation()` (compiled), and that with the text model's weights in 8 bits by torchao (int8).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_encode import describe_machine, pool_bytes
from evaluation.files import write_json
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor
from training.assembly import load_model

FULL, TINY = "configs/models/vggt-1b-qwen3-4b.json", "configs/models/tiny.json"
TINY_TOKENIZER = "configs/tokenizer-tiny"
VARIANTS = ("plain", "static", "fast", "compiled", "int8")
SHORT_ANSWER = 10
CHECKED_ANSWERS = 16
MOST_VIEWS = 16
LABELS = (
    "armchair",
    "bed",
    "bookshelf",
    "chair",
    "desk",
    "door",
    "fridge",
    "lamp",
    "sofa",
    "table",
    "wardrobe",
    "window",
)
WORDS = ("the", "large", "small", "red", "old", "left", "right", "wooden", "nearest", "tall", *LABELS)


@dataclass
class Bench:
    """A model with its processor, and how often everything is timed."""

    model: VggtQwen3ForConditionalGeneration
    processor: VggtQwen3Processor
    repeats: int
    warmup: int
    long_answer: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    def photographs(self, num_views: int) -> list[np.ndarray]:
        """Random pictures [height, width, 3] of the size that the model takes."""
        size = self.processor.image_processor.size
        return list(self.rng.integers(0, 256, (num_views, size.height, size.width, 3), dtype=np.uint8))

    def prompts(self, count: int, num_views: int, task: str) -> list[str]:
        """Questions of 5 to 20 words, each another one."""
        prompts = []
        for _ in range(count):
            words = " ".join(self.rng.choice(WORDS, self.rng.integers(3, 18)))
            messages = self.processor.conversation(f"What is {words}?", num_views=num_views, task=task)
            prompts.append(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return prompts

    def inputs(self, views: Sequence[np.ndarray], batch: int, task: str = "scanqa") -> dict[str, torch.Tensor]:
        """A batch on the model's device; level cameras are known for actions."""
        cameras = {}
        if task == "actions":
            cameras = {"intrinsics": [np.tile([[400.0, 0, 224], [0, 400, 224], [0, 0, 1]], (len(views), 1, 1))]}
            pose = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
            cameras["world_from_cam"] = [np.tile(pose, (len(views), 1, 1))]
        return dict(self.processor(images=[views], text=self.prompts(batch, len(views), task), **cameras))

    def generate(self, inputs: dict[str, torch.Tensor], num_tokens: int, options: dict[str, Any]) -> torch.Tensor:
        """New tokens [batch, num_tokens]; the random model is not allowed to stop by itself."""
        moved = {key: value.to(self.model.device) for key, value in inputs.items()}
        fixed = {"max_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
        if "constraint" not in options:
            fixed["min_new_tokens"] = num_tokens
        tokens = self.model.generate(**moved, **fixed, **options)
        return tokens[:, inputs["input_ids"].shape[1] :]

    def time(self, call: Callable[[], Any]) -> float:
        """Median in milliseconds, after a warm-up."""
        times = []
        for repeat in range(self.warmup + self.repeats):
            self._synchronize()
            start = time.perf_counter()
            call()
            self._synchronize()
            if repeat >= self.warmup:
                times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def options_of(variant: str) -> dict[str, Any]:
    """What `generate` is given."""
    if variant == "plain":
        return {}
    return {"cache_implementation": "static"} if variant == "static" else {"fast": True}


def measure(bench: Bench, variant: str, num_views: int, batch: int, with_actions: bool) -> dict[str, Any]:
    """One row of the result."""
    options = options_of(variant)
    views = bench.photographs(num_views)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def answer(num_tokens: int) -> float:
        return bench.time(lambda: bench.generate(bench.inputs(views, batch), num_tokens, options))

    first, short, long = (answer(count) for count in (1, SHORT_ANSWER, bench.long_answer))
    rate = 1000 * batch * (bench.long_answer - SHORT_ANSWER) / (long - short)
    row = {"variant": variant, "views": num_views, "batch": batch}
    row |= {"first_token_ms": first, "answer_ms": short, "tokens_per_s": rate, "second_ms": None}
    if variant != "static":
        row["second_ms"] = time_second_question(bench, views, batch, options)
    if with_actions and variant != "static":
        row |= time_action(bench, views, batch, options)
    row["peak_gb"] = peak_bytes() / 1e9 if bench.on_gpu else None
    return row


def peak_bytes() -> int:
    """Most that was allocated, and what the graphs of all shapes so far hold beside it."""
    return torch.cuda.max_memory_allocated() + pool_bytes(torch.cuda.memory_snapshot())


def time_second_question(bench: Bench, views: Sequence[np.ndarray], batch: int, options: dict[str, Any]) -> float:
    """Ten tokens about a scene that was encoded before."""
    scene = bench.model.encode_scene(**bench.inputs(views, 1), fast=options.get("fast", False))

    def ask() -> None:
        text = dict(bench.processor(text=bench.prompts(batch, len(views), "scanqa"), scene=scene))
        bench.generate(text, SHORT_ANSWER, {**options, "scene": scene})

    return bench.time(ask)


def time_action(bench: Bench, views: Sequence[np.ndarray], batch: int, options: dict[str, Any]) -> dict[str, float]:
    """Photographs and cameras to a constrained action; also its tokens, the end of the turn included."""
    constraint = bench.processor.action_constraint(actions=["place_anchor"], labels=list(LABELS))
    lengths = []

    def act() -> None:
        inputs = bench.inputs(views, batch, "actions")
        tokens = bench.generate(inputs, 200, {**options, "constraint": constraint})
        lengths.append(tokens.shape[1])

    return {"action_ms": bench.time(act), "action_tokens": statistics.median(lengths)}


def build(options: argparse.Namespace) -> Bench:
    """The model of random weights, made on its device."""
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        model, processor = load_model(
            options.config, options.tokenizer, image_size=options.image_size, device=options.device
        )
    finally:
        torch.set_default_dtype(kept)
    return Bench(model.eval(), processor, options.repeats, options.warmup, options.long_answer)


def prepare(bench: Bench, variant: str) -> None:
    """Turns the model into a variant; variants come in the order of VARIANTS."""
    if variant == "compiled":
        bench.model.compile_for_generation()
    elif variant == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(bench.model.model.language_model, Int8WeightOnlyConfig())
        bench.model.compile_for_generation()


@dataclass
class Reference:
    """Answers of the plain loop before anything was compiled or quantized: inputs, tokens and logits of each step."""

    inputs: dict[str, torch.Tensor]
    tokens: torch.Tensor
    logits: Sequence[torch.Tensor]


def answer_plainly(bench: Bench, num_views: int, batch: int) -> list[Reference]:
    """Short answers to compare those of a variant with, about a scene a batch."""
    references = []
    for _ in range(CHECKED_ANSWERS // batch):
        inputs = bench.inputs(bench.photographs(num_views), batch)
        moved = {key: value.to(bench.model.device) for key, value in inputs.items()}
        output = bench.model.generate(
            **moved,
            do_sample=False,
            max_new_tokens=SHORT_ANSWER,
            min_new_tokens=SHORT_ANSWER,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        references.append(Reference(inputs, output.sequences[:, inputs["input_ids"].shape[1] :], output.logits))
    return references


def compare_tokens(bench: Bench, variant: str, references: Sequence[Reference]) -> dict[str, Any]:
    """How many answers of a variant differ from the plain loop's, and how near the plain choice was to a tie.

    `largest_margin`: at the first difference of an answer, by how much the plain loop preferred its token over the
    variant's, in units of the logit's own rounding (its dtype's epsilon times its size).
    """
    margins, answers = [], 0
    for wanted in references:
        found = bench.generate(wanted.inputs, SHORT_ANSWER, options_of(variant))
        answers += len(found)
        for row, differs in enumerate((found != wanted.tokens).tolist()):
            if True in differs:
                step = differs.index(True)
                logits = wanted.logits[step][row].float()
                best, other = (logits[tokens[row, step]] for tokens in (wanted.tokens, found))
                margins.append(float((best - other) / (torch.finfo(bench.model.dtype).eps * best.abs())))
    return {
        "variant": variant,
        "answers": answers,
        "tokens_each": SHORT_ANSWER,
        "different_answers": len(margins),
        "largest_margin": max(margins, default=0.0),
    }


def watch_memory(bench: Bench, count: int) -> dict[str, Any]:
    """What is held on the device after one answer about each number of views, and after `count` more."""

    def answer(number: int) -> None:
        bench.generate(bench.inputs(bench.photographs(1 + number % MOST_VIEWS), 1), 3, {"fast": True})

    def state() -> dict[str, Any]:
        held = torch.cuda.memory_allocated() / 1e9 if bench.on_gpu else None
        return {"held_gb": held, "captured_graphs": bench.model._decoder.num_captured if bench.model._decoder else 0}

    for number in range(2 * MOST_VIEWS):
        answer(number)
    before = state()
    for number in range(count):
        answer(number)
    return {"generations": count, "before": before, "after": state()}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time to the first token over views, and tokens a second over the batch: a colour a variant."""
    import matplotlib as mpl  # a development requirement: the figures themselves need it not

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    panels = (
        ("views", "batch", "first_token_ms", "ms to the first token"),
        ("batch", "views", "tokens_per_s", "tokens a second"),
    )
    for axis, (over, other, key, label) in zip(axes, panels):
        kept = max({row[other] for row in rows}, key=lambda value: sum(row[other] == value for row in rows))
        for variant in dict.fromkeys(row["variant"] for row in rows):
            line = sorted((row[over], row[key]) for row in rows if row["variant"] == variant and row[other] == kept)
            if line:
                axis.plot(*zip(*line), marker="o", label=variant)
        axis.set(xscale="log", yscale="log", xlabel=over, ylabel=label, title=f"{other} {kept}")
        axis.set_xticks(sorted({row[over] for row in rows}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path)
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/benchmarks/generate.json"), help="JSON; the plot lies beside"
    )
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32", choices=("bfloat16", "float32"))
    parser.add_argument("--config", default=FULL if on_gpu else TINY, help="JSON of a model configuration")
    parser.add_argument("--tokenizer", default=TINY_TOKENIZER, help="folder of a tokenizer of the Qwen family")
    parser.add_argument("--image-size", type=int, default=448 if on_gpu else 112)
    parser.add_argument("--variants", default="plain,fast,compiled" if on_gpu else "plain,fast")
    parser.add_argument("--views", type=numbers, default=[1, 8, 16] if on_gpu else [8])
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16] if on_gpu else [1, 4])
    parser.add_argument("--long-answer", type=int, default=64, help="tokens; rates come from it and a short answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--actions", action="store_true", help="also constrained actions (needs llguidance)")
    parser.add_argument("--check", action="store_true", help="also count answers that differ from the plain loop's")
    parser.add_argument("--generations", type=int, help="also the memory after so many answers, by the last variant")
    options = parser.parse_args(arguments)
    options.variants = options.variants.split(",")
    unknown = set(options.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"--variants {', '.join(sorted(unknown))}: wanted some of {', '.join(VARIANTS)}")
    options.variants.sort(key=VARIANTS.index)
    return options


def measure_all(bench: Bench, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Fills `result`, which is written after every row, whatever becomes of the rest."""
    references = answer_plainly(bench, options.views[-1], min(options.batch)) if options.check else []
    rows, differences = result["rows"], result["differences"]

    def note(finding: dict[str, Any]) -> None:
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in finding.items()}), flush=True)
        write_json(options.output, result)

    for variant in options.variants:
        prepare(bench, variant)
        for num_views in options.views:
            for batch in options.batch if num_views == 8 or len(options.views) == 1 else options.batch[:1]:
                rows.append(measure(bench, variant, num_views, batch, options.actions and batch == 1))
                note(rows[-1])
        if references and variant not in ("plain", "static"):
            differences.append(compare_tokens(bench, variant, references))
            note(differences[-1])
    if options.generations:
        result["memory"] = watch_memory(bench, options.generations)
        note(result["memory"])
    if bench.model._decoder is not None:
        result["captured_graphs"] = bench.model._decoder.num_captured
    write_json(options.output, result)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    bench = build(options)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    machine = describe_machine(argparse.Namespace(device=bench.model.device))
    result: dict[str, Any] = {"machine": machine, "settings": settings, "rows": [], "differences": []}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    measure_all(bench, options, result)
    plot(result["rows"], options.output.with_suffix(".svg"))
    print(f"{options.output}, {options.output.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
