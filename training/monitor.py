"""How a run stands, from another terminal:

python -m training.monitor --run outputs/stage1_3dqa            once
python -m training.monitor --run outputs/stage1_3dqa --watch    again and again, until it ends
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoints import complete_checkpoints, damage

LOG_NAME = "log.jsonl"
BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
QUIET_S = 600
"""A run that says nothing for so long is called quiet."""


@dataclass
class RunStatus:
    """What a run's log holds; after a resumption, what the earlier attempt wrote of later steps is left out.

    Attributes:
        begin: the line of the process that works, or worked, on it.
        last: its newest line.
        logs: lines with a loss, one a step, oldest first.
        evaluation: the newest line of an evaluation, or None.
        attempts: how often the run was begun or resumed.
    """

    begin: dict[str, Any]
    last: dict[str, Any]
    logs: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    attempts: int = 1


def read_status(run: str | Path) -> RunStatus:
    """Reads `log.jsonl` of a run.

    Raises:
        FileNotFoundError: for a folder without one.
    """
    path = Path(run) / LOG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no {LOG_NAME}: no training has begun there; give the run's --output_dir")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    status = RunStatus(lines[0], lines[0], attempts=0)
    logs: dict[int, dict[str, Any]] = {}
    for line in lines:
        status.last = line
        if line["event"] == "begin":
            status.begin, status.attempts = line, status.attempts + 1
            logs = {step: kept for step, kept in logs.items() if step <= line["step"]}
        elif "loss" in line:
            logs[line["step"]] = line
        elif any(key.startswith("eval_") for key in line):
            status.evaluation = line
    status.logs = [logs[step] for step in sorted(logs)]
    return status


def describe(run: str | Path, status: RunStatus, now: float) -> str:
    """Several lines of text on a run.

    Args:
        run: its folder.
        now: seconds since the epoch.
    """
    step, last_step = status.last["step"], status.last["max_steps"]
    share = step / max(1, last_step)
    lines = [f"{run}: {_state(status, now)}"]
    lines.append(f"step        {step:,} of {last_step:,} ({share:.1%}), attempt {status.attempts}")
    if status.logs:
        newest = status.logs[-1]
        lines.append(f"loss        {newest['loss']:.4f}  {_curve([entry['loss'] for entry in status.logs])}")
        lines.append(f"rate        lr {newest.get('learning_rate', 0):.2e}, {_speed(newest)}")
    if status.evaluation is not None:
        lines.append(f"evaluation  step {status.evaluation['step']:,}: {_figures(status.evaluation)}")
    lines.append(f"checkpoint  {_last_checkpoint(run, now)}")
    return "\n".join(lines)


def _state(status: RunStatus, now: float) -> str:
    ago = _span(now - status.last["time"])
    if status.last["event"] == "end":
        return f"finished {ago} ago"
    if status.last["event"] == "stopped":
        return f"stopped by a signal {ago} ago, with a checkpoint; --resume_from_checkpoint latest goes on"
    begin = status.begin
    if begin["host"] == socket.gethostname() and not _is_alive(begin["pid"]):
        return f"its process is gone without a word, {ago} ago; --resume_from_checkpoint latest goes on"
    quiet = f", quiet for {ago}: it loads, evaluates, saves or hangs" if now - status.last["time"] > QUIET_S else ""
    processes = f"{begin['processes']} process" + ("es" if begin["processes"] > 1 else "")
    return f"running on {begin['host']}, {processes}{quiet}"


def _speed(line: dict[str, Any]) -> str:
    parts = [f"{line['samples_per_second']:g} samples/s, {_span(line['eta_s'])} left"]
    if "grad_norm" in line:
        parts.insert(0, f"gradient norm {line['grad_norm']:.3g}")
    if "peak_memory_gb" in line:
        parts.append(f"peak memory {line['peak_memory_gb']:g} GB")
    return ", ".join(parts)


def _figures(line: dict[str, Any]) -> str:
    figures = {key.removeprefix("eval_"): value for key, value in line.items() if key.startswith("eval_")}
    shown = {key: value for key, value in figures.items() if not key.endswith(("_per_second", "runtime"))}
    return ", ".join(f"{key} {value:.4g}" for key, value in shown.items())


def _last_checkpoint(run: str | Path, now: float) -> str:
    complete = complete_checkpoints(run)
    if not complete:
        return "none yet"
    faults = damage(complete[-1])
    age = _span(now - complete[-1].stat().st_mtime)
    return f"{complete[-1].name}, {age} old, {'DAMAGED: ' + '; '.join(faults) if faults else 'whole'}"


def _curve(values: list[float]) -> str:
    """The course of a number in one line of text, by means over equal stretches."""
    count = min(CURVE_WIDTH, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _span(seconds: float) -> str:
    return str(datetime.timedelta(seconds=max(0, round(seconds))))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of the run (its --output_dir)")
    parser.add_argument("--watch", action="store_true", help="look again and again, until the run ends")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    while True:
        try:
            status = read_status(options.run)
        except FileNotFoundError as error:
            raise SystemExit(f"error: {error}") from error
        if options.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print(describe(options.run, status, time.time()), flush=True)
        if not options.watch or status.last["event"] in ("end", "stopped"):
            return
        time.sleep(options.every)


if __name__ == "__main__":
    main()
