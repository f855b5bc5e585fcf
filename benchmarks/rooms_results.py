"""What a finished model of the table left: its figures in one object, and the file that gathers them.

A row of the file: row, seed, scale, encoder_scale, encoder_seed (whose stage 0 all seeds of the command share, or null;
all five are its key), machine, command, settings, dataset, parameters; `stages`: 0, 1, 2 -> steps, samples_per_step (at
most), seconds, samples_per_second (scenes in stage 0), loss; `evaluation`: limit, seconds of each task; `conditions`:
condition -> {questions, furniture, thin, lists}, where

- questions: count, exact_match, interval, gain (over the same model blind, with its interval, where it is paired), and
  by_type: type -> count, exact_match, interval, gain;
- furniture, thin (planes and boxes thinner than 0.10 m, mostly on walls): count, and value and interval of each of
  ACTION_METRICS; lists: the same of LIST_METRICS over place_anchors.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.conditions import SIGHTED
from evaluation.files import write_json
from evaluation.runs import METRICS

if TYPE_CHECKING:
    from .rooms_table import Model, Step

BLIND = "blind"
QUESTIONS, ACTIONS = "rooms_qa", "rooms_actions"
KEY = ("row", "seed", "scale", "encoder_scale", "encoder_seed")
EXACT = "EM@1"
ACTION_METRICS = (
    "center_error_median_m",
    "iou_over_0.25",
    "iou_over_0.50",
    "normal_within_15_deg_placed",
    "label_accuracy",
)
LIST_METRICS = ("f1@0.25", "f1@0.50", "count_accuracy")

Figures = dict[str, Any]


def result_of(model: Model, machine: Figures, command: str) -> Figures:
    """The figures of a model all of whose steps are finished."""
    args = model.plan.args
    evaluations = {task: model.evaluation(task) for task in (QUESTIONS, ACTIONS)}
    folders = {task: step.marker.parent for task, step in evaluations.items()}
    metrics = {task: json.loads((folder / METRICS).read_text(encoding="utf-8")) for task, folder in folders.items()}
    stages = {"1": (model.stage(1), model.settings[1]), "2": (model.stage(2), model.settings[2])}
    if model.encoder is not None:
        stages = {"0": (model.encoder.step, model.encoder.settings), **stages}
    manifest = json.loads((Path(args.dataset) / "manifest.json").read_text(encoding="utf-8"))
    return {
        "row": model.row.name,
        "seed": model.seed,
        "scale": args.scale,
        "encoder_scale": args.encoder_scale,
        "encoder_seed": args.encoder_seed,
        "machine": machine,
        "command": command,
        "settings": args.settings,
        "dataset": {key: manifest[key] for key in ("fingerprint", "counts", "options")},
        "parameters": metrics[QUESTIONS]["model"]["parameters"],
        "stages": {name: _stage(step, settings) for name, (step, settings) in stages.items()},
        "evaluation": {"limit": args.limit, "seconds": {task: step.seconds for task, step in evaluations.items()}},
        "conditions": _conditions(metrics),
    }


def _stage(step: Step, settings: Figures) -> Figures:
    history = json.loads(step.marker.read_text(encoding="utf-8"))["log_history"]
    logs = [entry for entry in history if "loss" in entry]
    rates = [entry["samples_per_second"] for entry in logs if "samples_per_second" in entry]
    return {
        "steps": settings["max_steps"],
        "samples_per_step": settings["per_device_train_batch_size"],
        "seconds": step.seconds,
        "samples_per_second": statistics.median(rates[len(rates) // 3 :]) if rates else None,
        "loss": logs[-1]["loss"] if logs else None,
    }


def _conditions(metrics: dict[str, Figures]) -> Figures:
    questions, actions = (metrics[task]["tasks"][task] for task in (QUESTIONS, ACTIONS))
    blind = _headline(questions, BLIND)
    return {
        name: {
            "questions": _questions(_headline(questions, name), blind, _gain(questions["paired"], name)),
            **{kind: _action_row(actions["results"][name]["by_kind"].get(kind)) for kind in ("furniture", "thin")},
            "lists": _picked(actions["results"][name]["all"], LIST_METRICS, "place_anchors"),
        }
        for name in metrics[QUESTIONS]["conditions"]
    }


def _headline(task: Figures, condition: str) -> Figures:
    return task["results"][condition]["protocols"][task["headline_protocol"]]


def _gain(paired: Figures, name: str) -> Figures | None:
    """Of the whole input over none, in percent of questions, on the same ones."""
    if name != SIGHTED or BLIND not in paired:
        return None
    compared = paired[BLIND]["metrics"][EXACT]  # blind minus sighted
    low, high = compared["interval"]
    return {"value": 0.0 - compared["difference"], "interval": [0.0 - high, 0.0 - low]}  # no minus before a 0


def _questions(found: Figures, blind: Figures, gain: Figures | None) -> Figures:
    types = {
        name: {**_exact(row), "gain": row["scores"][EXACT] - blind["by_type"][name]["scores"][EXACT]}
        for name, row in found["by_type"].items()
    }
    return {**_exact(found["all"]), "gain": gain, "by_type": types}


def _exact(row: Figures) -> Figures:
    count = row["count"]
    return {"count": count, "exact_match": row["scores"][EXACT], "interval": row["intervals"][EXACT]}


def _action_row(row: Figures | None) -> Figures | None:
    return None if row is None else _picked(row, ACTION_METRICS, "place_anchor")


def _picked(row: Figures, names: tuple[str, ...], action: str) -> Figures:
    values = {
        name: {"value": row["scores"][name], "interval": row["intervals"][name]}
        for name in names
        if name in row["scores"]
    }
    return {"count": row["count"][action], **values}


def merged(path: Path, entry: Figures) -> list[Figures]:
    """The rows of a file, the new one in place of an older one with its key."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    key = [entry[name] for name in KEY]
    rows = [row for row in rows if [row[name] for name in KEY] != key] + [entry]
    return sorted(rows, key=lambda row: [str(row[name]) for name in KEY])


def write_figures(path: Path, rows: list[Figures]) -> None:
    """Writes all rows at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"rows": rows})
