"""The table of docs/rooms.md: the small model and its ablations, trained by train.py and scored by eval.py.

    python -m benchmarks.rooms_table --dataset data/rooms-large --folder outputs/rooms --rows main --seeds 0,1,2
    python -m benchmarks.rooms_table --dataset data/rooms-large --folder outputs/rooms --rows all --scale 0.3 --jobs 3
    python -m benchmarks.rooms_table --render

Every stage is a process with a log of its own, then test rooms are asked questions and actions under the row's
controls (`rooms_rows.py`). What is finished in the folder is not done again, and stages 1 and 2 go on within, so a
command that was cut off, or ended by --time-limit, is given once more. Rows share the encoders of their seed. Results
go into those that --output holds already, by row, seed and scales; --render writes them into the page.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from datasets_scripts.schema import read_manifest
from training.arguments import CONFIGS, read_yaml
from training.assembly import describe_model, read_config
from training.data import SceneDataset
from training.prepare import prepare

from .bench_train import describe_machine
from .rooms_report import DOCS, FIGURES, render
from .rooms_results import merged, result_of, write_figures
from .rooms_rows import ROWS, TableRow, parse_rows

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENIZER = str(CONFIGS / "tokenizer-tiny")
ON_CPU = {"prepare_data": "cpu", "use_cpu": True, "bf16": False, "compile_parts": [], "cuda_graphs": False}
PLACES = ("dataset", "output_dir", "prepared_dir", "model", "vision_checkpoint")
"""Settings that say where things lie, not what they are."""
ANSWER_TOKENS = {"rooms_qa": 16, "rooms_actions": 512}
SECONDS_TO_SAVE = 60


class OutOfTimeError(Exception):
    """The time is over; what was running has saved what it could."""


@dataclass(frozen=True)
class Step:
    """A process that leaves `marker` when it has finished; its log and its seconds lie in `folder`."""

    name: str
    folder: Path
    command: list[str]
    marker: Path

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        path = self.folder / f"{self.name}.seconds"
        return float(path.read_text()) if path.is_file() else 0.0

    def add_seconds(self, seconds: float) -> None:
        """Takes an attempt into account."""
        (self.folder / f"{self.name}.seconds").write_text(f"{self.seconds + seconds:.1f}")


class Clock:
    """The end of the time, by --time-limit or a signal."""

    def __init__(self, limit: float | None) -> None:
        self.end = None if limit is None else time.monotonic() + limit
        self.told = threading.Event()

    def is_over(self) -> bool:
        """Whether nothing more is to begin and what runs is to end."""
        return self.told.is_set() or (self.end is not None and time.monotonic() >= self.end)


class Runner:
    """Runs steps, several at once, each as a process that is ended when the time is over."""

    def __init__(self, clock: Clock, threads: int) -> None:
        self.clock, self.counted = clock, set[subprocess.Popen]()
        names = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")
        self.environment = {**os.environ, **dict(zip(names, (str(threads), "false", "1")))}

    def run(self, steps: Sequence[Step]) -> None:
        """Runs those that are not finished, at the same time.

        Raises:
            OutOfTimeError: the time is over.
            RuntimeError: a process failed; names its log.
        """
        waiting = [step for step in steps if not step.marker.is_file()]
        if waiting and self.clock.is_over():
            raise OutOfTimeError
        with contextlib.ExitStack() as stack:
            running = [(step, self._start(step, stack), time.monotonic()) for step in waiting]
            try:
                while self._still_running(running) and not self.clock.is_over():
                    time.sleep(0.2)
            finally:
                _end([process for _, process, _ in running])
                self._still_running(running)
        failed = [step for step, process, _ in running if process.returncode or not step.marker.is_file()]
        if failed and self.clock.is_over():
            raise OutOfTimeError
        if failed:
            log = failed[0].folder / f"{failed[0].name}.log"
            raise RuntimeError(f"{failed[0].folder.name}, {failed[0].name} failed; {log} ends:\n{_tail(log)}")

    def _still_running(self, running: list[tuple[Step, subprocess.Popen, float]]) -> bool:
        """Whether any is; takes down the seconds of those that have ended since."""
        for step, process, began in running:
            if process.poll() is not None and process not in self.counted:
                self.counted.add(process)
                step.add_seconds(time.monotonic() - began)
        return any(process.poll() is None for _, process, _ in running)

    def _start(self, step: Step, stack: contextlib.ExitStack) -> subprocess.Popen:
        step.folder.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {step.folder.name}: {step.name}", flush=True)
        log = stack.enter_context((step.folder / f"{step.name}.log").open("a", encoding="utf-8"))
        log.write(f"$ {shlex.join(step.command)}\n")
        log.flush()
        return subprocess.Popen(
            step.command, cwd=REPOSITORY, env=self.environment, stdout=log, stderr=subprocess.STDOUT
        )


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


# ----------------------------------------------------------------------------------------------------------- one model


@dataclass(frozen=True)
class Plan:
    """What all models have in common: the command line, and what it names."""

    args: argparse.Namespace
    fields: dict[str, Any]
    fingerprint: str

    def settings(self, stage: int, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
        """Of a stage, in place of its recipe's, but for where its model comes from and its result goes."""
        args = self.args
        recipe = read_yaml(f"rooms_stage{stage}.yaml")
        device = {} if torch.cuda.is_available() else ON_CPU
        settings = {**recipe, **changes, **device, **args.settings}
        scale = args.encoder_scale if stage == 0 else args.scale
        steps = max(1, round(settings["max_steps"] * scale))
        settings |= {"max_steps": steps, "logging_steps": max(1, min(settings["logging_steps"], steps // 10))}
        settings |= {"dataset": [str(Path(args.dataset).resolve())], "prepared_dir": str(self.prepared)}
        return {**settings, "seed": seed, "report_to": "none"}

    @property
    def folder(self) -> Path:
        """Of everything, absolute: processes start in the repository."""
        return self.args.folder.resolve()

    @property
    def prepared(self) -> Path:
        """Of the prepared arrays, which all stages share."""
        return self.folder / "prepared"


class Encoder:
    """Stage 0 of a seed, in a folder named by all that it depends on."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.settings = plan.settings(0, seed, {})
        depends = {
            "vision": plan.fields["vision_config"],
            "layers": plan.fields["perceiver_config"]["feature_layers"],
            "settings": without_places(self.settings),
            "dataset": plan.fingerprint,
        }
        self.key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:10]
        self.folder = plan.folder / f"encoder-{seed}-{self.key}"
        self.result = self.folder / "stage0"
        config = self.folder / "stage0.yaml"
        model = self.folder / "model.json"
        self.files = {
            model: plan.fields,
            config: {**self.settings, "model": str(model), "output_dir": str(self.result)},
        }
        command = [sys.executable, "train.py", "--config", str(config)]
        self.step = Step("stage0", self.folder, command, self.result / "trainer_state.json")


class Model:
    """A row of the table with one seed: stages 1 and 2, then its evaluation."""

    def __init__(self, plan: Plan, row: TableRow, seed: int) -> None:
        self.plan, self.row, self.seed = plan, row, seed
        encoder_seed = seed if plan.args.encoder_seed is None else plan.args.encoder_seed
        self.encoder = Encoder(plan, encoder_seed) if row.uses_stage_0 else None
        scales = {"x": plan.args.scale, "e": plan.args.encoder_scale}
        if plan.args.encoder_scale == plan.args.scale:
            del scales["e"]
        scaled = "".join(f"-{mark}{value:g}" for mark, value in scales.items() if value != 1)
        self.folder = plan.folder / f"{row.name}-{seed}{scaled}"
        self.results = {stage: self.folder / f"stage{stage}" for stage in (1, 2)}
        self.settings = {stage: plan.settings(stage, seed, row.settings) for stage in (1, 2)}
        fields = copy.deepcopy(plan.fields)
        row.edit(fields)
        model = self.folder / "model.json"
        first = {**self.settings[1], "model": str(model), "output_dir": str(self.results[1])}
        first.pop("vision_checkpoint", None)
        if self.encoder is not None:
            first["vision_checkpoint"] = str(self.encoder.result)
        second = {**self.settings[2], "model": str(self.results[1]), "output_dir": str(self.results[2])}
        self.files = {
            model: fields,
            self.folder / "stage1.yaml": first,
            self.folder / "stage2.yaml": second,
            self.folder / "depends.json": {
                "dataset": plan.fingerprint,
                "model": fields,
                "encoder": self.encoder and self.encoder.key,
                **{f"stage {stage}": without_places(settings) for stage, settings in self.settings.items()},
            },
        }

    def program(self, name: str) -> list[str]:
        """The command that trains or evaluates."""
        if self.row.is_predecessor:
            return [sys.executable, "-m", "benchmarks.predecessor", name]
        return [sys.executable, f"{name}.py"]

    def stage(self, stage: int) -> Step:
        """Stage 1 or 2, which goes on where it was ended."""
        command = [*self.program("train"), "--config", str(self.folder / f"stage{stage}.yaml")]
        command += ["--resume_from_checkpoint", "latest"]
        return Step(f"stage{stage}", self.folder, command, self.results[stage] / "trainer_state.json")

    def evaluation(self, task: str) -> Step:
        """The row's conditions, over test rooms."""
        args, output = self.plan.args, self.folder / "eval" / f"{task}-{self.plan.args.limit}"
        command = [*self.program("eval"), "--model", str(self.results[2]), *("--dataset", *self.settings[2]["dataset"])]
        command += ["--split", "test", "--task", task, "--num-views", str(self.settings[2]["num_views"])]
        command += ["--controls", ",".join(self.row.controls), "--limit", str(args.limit), "--gallery", "0"]
        command += ["--batch-size", str(args.batch_size), "--num-workers", str(args.workers)]
        command += ["--max-new-tokens", str(ANSWER_TOKENS[task]), "--output", str(output), "--overwrite"]
        return Step(output.name, self.folder, command, output / "report.html")

    def run(self, runner: Runner) -> None:
        """Does what is missing."""
        for stage in (1, 2):
            runner.run([self.stage(stage)])
            for checkpoint in self.results[stage].glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        runner.run([self.evaluation(task) for task in ANSWER_TOKENS])


def without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """What a stage does, wherever."""
    return {key: value for key, value in settings.items() if key not in PLACES}


def write_files(files: dict[Path, dict[str, Any]]) -> None:
    """Writes settings as JSON, which YAML contains.

    Raises:
        ValueError: the folder holds a model of other settings.
    """
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "depends.json" and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key in content if before.get(key) != json.loads(json.dumps(content[key]))]
            if differing:
                raise ValueError(
                    f"{path.parent} holds a model of other settings ({', '.join(differing)}): delete it, or choose "
                    "another --folder"
                )
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- all rows


def prepare_data(plan: Plan) -> None:
    """Lays the training rooms out once, before several processes would."""
    marker = plan.prepared / f"{plan.fingerprint[:20]}-{plan.fields['vision_config']['image_size']}.done"
    if marker.is_file():
        return
    print(f"{time.strftime('%H:%M:%S')} preparing {plan.args.dataset}", flush=True)
    processor = describe_model(str(plan.args.model), TOKENIZER)[1]
    prepare(SceneDataset([plan.args.dataset], "train", 8), processor, plan.prepared)
    marker.touch()


def run_table(args: argparse.Namespace, words: Sequence[str]) -> bool:
    """Trains and scores all that the command line names; whether everything is finished.

    Raises:
        RuntimeError: rows that failed, once the others have ended.
    """
    plan = Plan(args, read_config(str(args.model)).to_dict(), read_manifest(args.dataset).fingerprint)
    models = [Model(plan, row, seed) for row in parse_rows(args.rows) for seed in args.seeds]
    encoders = {model.encoder.key: model.encoder for model in models if model.encoder is not None}
    for each in (*models, *encoders.values()):
        write_files(each.files)
    clock = Clock(args.time_limit)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: clock.told.set())
    runner = Runner(clock, max(1, len(os.sched_getaffinity(0)) // (2 * args.jobs)))
    machine = describe_machine()
    prepare_data(plan)

    def finish(model: Model) -> None:
        model.run(runner)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{args.output}.lock"):  # another command may train other rows
            entry = result_of(model, machine, shlex.join(words))
            write_figures(args.output, merged(args.output, entry))
            print(f"{time.strftime('%H:%M:%S')} {model.folder.name}: in {args.output}", flush=True)

    failures = _all(lambda encoder: runner.run([encoder.step]), list(encoders.values()), args.jobs)
    if not failures:
        failures = _all(finish, models, args.jobs)
    errors = [failure for failure in failures if not isinstance(failure, OutOfTimeError)]
    if errors:
        raise RuntimeError("\n\n".join(map(str, errors)))
    return not failures


def _all(work: Any, items: Sequence[Any], jobs: int) -> list[Exception]:
    """Works on all items, `jobs` at once; what went wrong."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
    return [error for error in (future.exception() for future in futures) if error is not None]


def make_parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description="Trains and scores the rows of docs/rooms.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", help="built rooms with dense labels")
    parser.add_argument("--folder", type=Path, help="where models, logs and predictions go, and stay")
    parser.add_argument("--rows", default="main", help=f"with commas, or all: {', '.join(ROWS)}")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of all stages")
    parser.add_argument("--encoder-scale", type=float, help="of the steps of stage 0, by default --scale")
    parser.add_argument("--encoder-seed", type=int, help="of a stage 0 that all seeds share, by default none")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, on the same GPU")
    parser.add_argument("--limit", type=int, default=2000, help="test questions, and test actions")
    parser.add_argument("--batch-size", type=int, default=256, help="of the evaluation")
    parser.add_argument("--workers", type=int, help="processes that read test rooms, of each evaluation")
    parser.add_argument("--model", type=Path, default=CONFIGS / "models" / "rooms-tiny.json", help="configuration")
    parser.add_argument("--settings", type=json.loads, default={}, help="of all stages, as JSON, before --scale")
    parser.add_argument("--time-limit", type=float, help="seconds after which what runs is told to save and end")
    parser.add_argument("--output", type=Path, default=FIGURES, help="all figures")
    parser.add_argument("--render", action="store_true", help="write the figures of --output into --page, and end")
    parser.add_argument("--page", type=Path, default=DOCS, help="with --render")
    parser.set_defaults(cores=cores)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Trains, scores, or renders.

    Raises:
        ValueError: rows that nobody knows, or a folder of other settings.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    args = parser.parse_args(words)
    if args.render:
        render(args.output, args.page)
        return
    if not args.dataset or not args.folder:
        parser.error("--dataset and --folder are wanted, or --render")
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.encoder_scale = args.scale if args.encoder_scale is None else args.encoder_scale
    if args.workers is None:
        args.workers = 0 if args.cores < 4 else min(8, max(2, args.cores // (args.jobs + 1)))
    if not run_table(args, words):
        print("the time is over: the same command goes on", flush=True)
        raise SystemExit(75)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
