"""What constrained decoding costs and spares: set-up, a step of masks, and forward passes, as JSON.

    python -m benchmarks.bench_constraint
    python -m benchmarks.bench_constraint --tokenizer Qwen/Qwen3-4B-Instruct-2507 --vocab-size 151936

Along the canonical texts of random actions of a room. A step is what a loop of one's own does between two passes:
masks on the CPU, unpacked to bools of the model's vocabulary, the chosen token accepted, the forced ones asked for. It
runs in one thread and is timed by that thread's own clock, which what else runs on the machine does not disturb. By
default under the small tokenizer of this repository, and under Qwen's if the package `dashscope`, which holds its
vocabulary, is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from processing.action_vggt_qwen3 import action_from_targets, format_action
from processing.constraint_vggt_qwen3 import ActionConstraint

TINY = Path(__file__).resolve().parents[1] / "configs" / "tokenizer-tiny"
QWEN_VOCABULARY = 151_936
LABELS = (
    *("chair", "office chair", "armchair", "sofa", "coffee table", "dining table", "desk", "bed", "nightstand"),
    *("wardrobe", "bookshelf", "kitchen cabinet", "refrigerator", "floor lamp", "television", "potted plant"),
    *("window", "door", "whiteboard", "wall"),
)
BATCHES = (1, 8)


def random_texts(action: str, count: int, seed: int = 0) -> list[str]:
    """Canonical texts of actions on boxes of a room of 10 m; lists hold 2 to 12 anchors of one label."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        label = str(rng.choice(LABELS))
        num_anchors = 1 if action == "place_anchor" else int(rng.integers(2, 13))
        targets = [_random_target(label, rng) for _ in range(num_anchors)]
        texts.append(format_action(action_from_targets(action, targets, np.eye(4))))
    return texts


def _random_target(label: str, rng: np.random.Generator) -> dict[str, Any]:
    cosine, sine = np.cos(angle := rng.uniform(-np.pi, np.pi)), np.sin(angle)
    axes = [[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]]
    center = [*rng.uniform(-5, 5, 2), rng.uniform(-1.5, 1)]
    return {"label": label, "kind": "object", "center": center, "size": rng.uniform(0.1, 2.5, 3), "axes": axes}


def load_tokenizers(names: Sequence[str], vocab_size: int | None) -> Iterator[tuple[str, PreTrainedTokenizerBase, int]]:
    """(name, tokenizer, number of the model's tokens) of those named, or of the two that need no download."""
    for name in names or (TINY,):
        tokenizer = AutoTokenizer.from_pretrained(name)
        yield Path(name).name, tokenizer, vocab_size or len(tokenizer)
    if names:
        return
    try:
        distribution("dashscope")
    except PackageNotFoundError:
        print("Qwen's vocabulary is left out: pip install --no-deps dashscope==2.0.2, or name one by --tokenizer")
        return
    from tests.qwen import write_tokenizer  # from the package's file to a tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        yield "qwen", AutoTokenizer.from_pretrained(folder), QWEN_VOCABULARY


def time_setup(tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Seconds of the first constraint of a tokenizer, and of the first mask; milliseconds of further constraints."""

    def begin() -> None:
        constraint = ActionConstraint(tokenizer)
        constraint.start(1)
        constraint.mask()

    first = _seconds(begin)
    return {"first_s": first, "further_ms": 1000 * statistics.median(_seconds(begin) for _ in range(10))}


def time_steps(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, texts: Sequence[str], batch: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of the parts of a step; rows that are done stay in the batch."""
    constraint = ActionConstraint(tokenizer)
    mask = torch.empty((batch, vocab_size), dtype=torch.bool)
    times: dict[str, list[float]] = {"packed_mask": [], "step": []}
    for name, start in itertools.product(times, range(0, len(texts) - batch + 1, batch)):
        rows = [_tokens(constraint, text) for text in texts[start : start + batch]]
        constraint.start(batch)
        for place in range(max(map(len, rows))):
            chosen = [row[place : place + 1] for row in rows]

            def step(chosen: list[list[int]] = chosen) -> None:
                constraint.mask(out=mask)
                constraint.accept(chosen)
                constraint.forced()

            if name == "step":
                times[name].append(1000 * _seconds(step))
            else:
                times[name].append(1000 * _seconds(constraint.packed_mask))
                constraint.accept(chosen)
    return {name: summary(values) for name, values in times.items()}


def count_passes(constraint: ActionConstraint, texts: Sequence[str]) -> dict[str, float]:
    """Passes of the model with and without forced runs: the prompt's pass takes the first run along."""
    tokens = passes = 0
    for text in texts:
        row = _tokens(constraint, text)
        constraint.start(1)
        tokens += len(row)
        place = 0
        while place < len(row):
            (run,) = constraint.forced()
            if run != row[place : place + len(run)]:
                raise AssertionError(f"the grammar forces other tokens than the tokenizer writes in {text}")
            passes += not run
            run = run or row[place : place + 1]
            constraint.accept([run])
            place += len(run)
    return {
        "tokens": tokens / len(texts),
        "passes": passes / len(texts),
        "saved_percent": 100 * (1 - passes / tokens),
    }


def measure(name: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int, num_actions: int) -> dict[str, Any]:
    """All figures of one tokenizer."""
    result: dict[str, Any] = {"tokenizer": name, "vocab_size": vocab_size, "setup": time_setup(tokenizer)}
    for action in ("place_anchor", "place_anchors"):
        texts = random_texts(action, num_actions)
        steps = {f"batch {batch}": time_steps(tokenizer, vocab_size, texts, batch) for batch in BATCHES}
        constraints = {
            "any action, any label": ActionConstraint(tokenizer),
            "this action, any label": ActionConstraint(tokenizer, actions=[action]),
            f"this action, {len(LABELS)} labels": ActionConstraint(tokenizer, actions=[action], labels=LABELS),
        }
        passes = {case: count_passes(constraint, texts) for case, constraint in constraints.items()}
        result[action] = {"steps_ms": steps, "passes": passes}
    return result


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, 95th percentile and largest."""
    median, mean = statistics.median(values), statistics.mean(values)
    return {"median": median, "mean": mean, "p95": float(np.quantile(values, 0.95)), "max": max(values)}


def print_figures(result: dict[str, Any]) -> None:
    """One tokenizer on the console."""
    setup = result["setup"]
    print(f"\n{result['tokenizer']}, {result['vocab_size']:,} tokens: set-up {setup['first_s']:.2f} s once, then "
          f"{setup['further_ms']:.1f} ms")  # fmt: skip
    for action in ("place_anchor", "place_anchors"):
        for batch, times in result[action]["steps_ms"].items():
            step, packed = times["step"], times["packed_mask"]
            print(
                f"  {action:13} {batch}: a step {step['median']:.3f} ms (mean {step['mean']:.3f}, 95 % "
                f"{step['p95']:.3f}, most {step['max']:.2f}), packed masks {packed['median']:.3f} ms"
            )
        for case, passes in result[action]["passes"].items():
            print(f"  {action:13} {case}: {passes['passes']:.1f} passes in place of {passes['tokens']:.1f} tokens, "
                  f"{passes['saved_percent']:.1f} % fewer")  # fmt: skip


def describe_machine() -> dict[str, str]:
    """What the figures depend on beside the code."""
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers", "llguidance")}
    cpu = _cpu_name() or platform.processor() or platform.machine()
    return {"date": str(date.today()), "cpu": cpu, "python": platform.python_version(), **libraries}


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _tokens(constraint: ActionConstraint, text: str) -> list[int]:
    return [*constraint.tokenizer(text)["input_ids"], constraint.end_of_turn_id]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/constraint.json"))
    parser.add_argument("--tokenizer", nargs="+", default=[], help="folders or Hub ids, in place of the two")
    parser.add_argument("--vocab-size", type=int, help="of the model of those tokenizers, if it has more tokens")
    parser.add_argument("--num-actions", type=int, default=100, help="of each kind (%(default)s)")
    options = parser.parse_args(arguments)
    if options.num_actions < max(BATCHES):
        raise SystemExit(f"error: --num-actions is {options.num_actions}, wanted at least {max(BATCHES)}")
    torch.set_num_threads(1)
    results = []
    for name, tokenizer, vocab_size in load_tokenizers(options.tokenizer, options.vocab_size):
        results.append(measure(name, tokenizer, vocab_size, options.num_actions))
        print_figures(results[-1])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": describe_machine(), "num_actions": options.num_actions, "results": results}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{options.output}")


if __name__ == "__main__":
    main()
