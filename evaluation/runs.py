"""One evaluation from settings to files: predictions.jsonl, metrics.json, run_config.yaml, submissions, report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from datasets_scripts.schema import ACTION_TASKS, file_sha256, read_manifest
from training.collator import SceneCollator
from training.data import SceneDataset
from training.launch import refuse_data_parallel

from .checkpoint import Checkpoint, load_checkpoint
from .files import read_rows, read_yaml, write_json, write_text
from .foreign import FOREIGN, ScoreSettings, join_answers, read_answers
from .predict import Predictor, action_constraint
from .report import render_report
from .results import Evaluation, console_table, metrics_json, score_all
from .settings import RUN_CONFIG, EvalSettings, open_datasets, prepare_output
from .submissions import write_submissions

METRICS, REPORT = "metrics.json", "report.html"


def run(settings: EvalSettings) -> Evaluation | None:
    """Predicts under every condition, scores and reports; None on every process but the first.

    Raises:
        FileNotFoundError, ValueError: what cannot be evaluated, by name, before anything is predicted.
    """
    state = PartialState()
    refuse_data_parallel(0 if state.use_distributed else torch.cuda.device_count())
    datasets = open_datasets(settings.dataset, settings.split, settings.num_views, settings.tasks, settings.limit)
    for task in datasets:
        if task not in ACTION_TASKS:
            settings.scoring.headline(task)
    checkpoint = load_checkpoint(settings.model, settings.attn_implementation, settings.dtype)
    checkpoint.model.to(state.device)
    for task in datasets:
        if task in ACTION_TASKS:
            action_constraint(checkpoint, settings.generation, settings.generation.token_limit(task))
    if state.is_main_process:
        prepare_output(settings, checkpoint.fingerprint)
    state.wait_for_everyone()
    predictor = Predictor(checkpoint, datasets, settings.generation, state)
    for condition in settings.conditions:
        predictor.run(condition, settings.predictions_of(condition.name))
    state.wait_for_everyone()
    return _report_run(settings, checkpoint, datasets) if state.is_main_process else None


def _report_run(settings: EvalSettings, checkpoint: Checkpoint, datasets: dict[str, SceneDataset]) -> Evaluation:
    rows = {name.name: read_rows(settings.predictions_of(name.name)) for name in settings.conditions}
    scores, paired = score_all(rows, list(datasets), settings.scoring)
    evaluation = Evaluation(
        model=describe_model(checkpoint),
        dataset=describe_dataset(settings.dataset, settings.split),
        settings=read_yaml(settings.output / RUN_CONFIG),
        conditions=tuple(rows),
        rows=rows,
        scores=scores,
        paired=paired,
        prompts={task: first_prompt(checkpoint, dataset, settings) for task, dataset in datasets.items()},
        scenes=datasets,
    )
    write_results(evaluation, settings.output, settings.gallery)
    return evaluation


def score(settings: ScoreSettings) -> Evaluation:
    """Scores answers made elsewhere and writes metrics.json, submissions and report.html.

    Raises:
        FileNotFoundError, ValueError: answers that cannot be read or do not belong to the dataset, by name.
    """
    answers = read_answers(settings.predictions)
    datasets = open_datasets(settings.dataset, settings.split, settings.num_views, settings.tasks)
    rows = {FOREIGN: join_answers(answers, datasets, settings.predictions)}
    scores, paired = score_all(rows, list(datasets), settings.scoring)
    evaluation = Evaluation(
        model={"name": settings.predictions.stem, "fingerprint": file_sha256(settings.predictions)},
        dataset=describe_dataset(settings.dataset, settings.split),
        settings={"predictions_file": str(settings.predictions)},
        conditions=(FOREIGN,),
        rows=rows,
        scores=scores,
        paired=paired,
        prompts={},
        scenes=datasets,
    )
    write_results(evaluation, settings.output, settings.gallery)
    return evaluation


def write_results(evaluation: Evaluation, output: Path, gallery: int) -> None:
    """Writes metrics.json, submissions and report.html, and prints the headline figures."""
    write_json(output / METRICS, metrics_json(evaluation))
    submissions = write_submissions(evaluation.rows[evaluation.main], output)
    write_text(output / REPORT, render_report(evaluation, gallery))
    print(f"\n{console_table(evaluation)}\n")
    for path in (output / METRICS, *submissions, output / REPORT):
        print(path)


def describe_model(checkpoint: Checkpoint) -> dict[str, Any]:
    """Name, fingerprint and size of what answered."""
    model = checkpoint.model
    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def describe_dataset(root: str, split: str) -> dict[str, Any]:
    """Name, split, fingerprint and counts of the data."""
    manifest = read_manifest(root)
    counts: Mapping[str, Any] = manifest.counts.get("samples", {})
    return {"name": root, "split": split, "fingerprint": manifest.fingerprint, "samples": counts.get(split, {})}


def first_prompt(checkpoint: Checkpoint, dataset: SceneDataset, settings: EvalSettings) -> str:
    """The first prompt of a task as it is rendered, one placeholder for all images: it is part of the protocol."""
    collator = SceneCollator(checkpoint.processor, checkpoint.model.config.task_names, with_answers=False)
    num_views = 0 if settings.conditions[0].blind else settings.num_views
    return collator.prompt(dataset.sample(0), num_views)
