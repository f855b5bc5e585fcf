"""Cards of models and datasets, filled from what was recorded: settings, figures, sources and their licences."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datasets_scripts.schema import ACTION_TASKS
from evaluation.results import ACTION_FIGURES, ANSWER_FIGURES, Figure, describe_condition, format_interval, format_value
from training.arguments import ARGUMENT_CLASSES, SceneTrainingArguments, known_keys

from .licences import DataSource, Encoder

TEMPLATES = Path(__file__).with_name("templates")
TASK_TITLES = {
    "scanqa": "Questions of ScanQA",
    "sqa3d": "Situated questions of SQA3D",
    "rooms_qa": "Questions about procedural rooms",
    "actions": "Anchors",
    "rooms_actions": "Anchors in procedural rooms",
}
UNTOLD_SETTINGS = (
    "output_dir",
    "logging_dir",
    "prepared_dir",
    "run_name",
    "resume_from_checkpoint",
    "hub_model_id",
    "report_to",
)
PLACES = ("model", "vision_checkpoint", "tokenizer", "dataset", "deepspeed")
TINY_PARAMETERS = 100_000_000
DECODING = {"batch_size": 16, "num_beams": 1, "max_new_tokens": None, "dtype": "auto", "attn_implementation": "sdpa"}
BOOTSTRAP = {"num_resamples": 1000, "seed": 0}
"""Defaults of eval.py, which a card's command leaves out."""


@dataclass(frozen=True)
class TaskTable:
    """One task's figures, a column a condition."""

    title: str
    protocol: str | None
    count: int
    conditions: list[str]
    figures: list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluationTables:
    """The figures of one metrics.json, the command that makes them again, and their entries of the model index."""

    dataset: str
    split: str
    command: str
    tasks: list[TaskTable]
    results: list[EvalResult]
    conditions: list[str]


@dataclass(frozen=True)
class ModelFacts:
    """What the model card tells.

    Attributes:
        repo_id: where it will be published.
        num_parameters, dtype: of the whole model.
        encoder, text_model: where they come from.
        sources: of the training data.
        processor: its settings, as `describe_processor` gives them.
        evaluations: metrics.json of each evaluation, as `read_evaluation` returns them.
        run_config: settings of the training run, None where none was recorded.
    """

    repo_id: str
    num_parameters: int
    dtype: str
    encoder: Encoder
    text_model: str
    sources: list[DataSource]
    processor: dict[str, Any]
    evaluations: list[EvaluationTables] = field(default_factory=list)
    run_config: dict[str, Any] | None = None


def model_card(facts: ModelFacts) -> str:
    """README.md of a model repository."""
    name = facts.repo_id.partition("/")[2]
    encoder = facts.encoder
    results = [result for evaluation in facts.evaluations for result in evaluation.results]
    metadata = ModelCardData(
        language="en",
        license=encoder.licence,
        license_name=encoder.licence_name,
        license_link=encoder.licence_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["custom_code", "vggt", "qwen3", "3d", "3d-question-answering", "roomplan"],
        base_model=[model for model in (encoder.base_model, _hub_id(facts.text_model)) if model] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    body = _render(
        "model_card.md",
        name=name,
        repo_id=facts.repo_id,
        num_parameters=facts.num_parameters,
        dtype=facts.dtype,
        encoder=encoder,
        text_model=facts.text_model,
        sources=facts.sources,
        data_in_words=" and ".join(source.title for source in facts.sources),
        has_learnt_actions=_has_learnt_actions(facts.run_config),
        is_tiny=facts.num_parameters < TINY_PARAMETERS,
        evaluations=facts.evaluations,
        conditions=list(dict.fromkeys(words for evaluation in facts.evaluations for words in evaluation.conditions)),
        settings=None if facts.run_config is None else changed_settings(facts.run_config),
        licence_in_words=encoder.notice,
        **facts.processor,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def _has_learnt_actions(run_config: dict[str, Any] | None) -> bool:
    """Whether actions were among the run's tasks, or may have been."""
    tasks = (run_config or {}).get("tasks") or list((run_config or {}).get("task_mix") or ACTION_TASKS)
    return any(task in ACTION_TASKS for task in tasks)


def dataset_card(
    repo_id: str,
    licence: str,
    sources: Sequence[DataSource],
    counts: Sequence[tuple[str, str, int]],
    fingerprint: str,
    languages: Sequence[str] = ("en",),
) -> str:
    """README.md of a dataset repository.

    Args:
        licence: of the whole, as the Hub knows it.
        counts: (table, split, rows) in the order they are shown.
        fingerprint: of the built dataset.
    """
    name = repo_id.partition("/")[2]
    total = sum(count for table, _, count in counts if table == "samples")
    metadata = DatasetCardData(
        language=list(languages),
        license=licence,
        pretty_name=name,
        task_categories=["visual-question-answering", "object-detection"],
        size_categories=[_size_category(total)],
        tags=["3d", "indoor", "3d-question-answering", "roomplan"],
    )
    metadata["configs"] = [
        {
            "config_name": table,
            "data_files": [
                {"split": split, "path": f"data/{table}/{split}-*.parquet"}
                for name, split, _ in counts
                if name == table
            ],
            **({"default": True} if table == "samples" else {}),
        }
        for table in ("scenes", "samples")
    ]
    body = _render(
        "dataset_card.md",
        name=name,
        folder=name,
        repo_id=repo_id,
        counts=list(counts),
        sources=list(sources),
        is_procedural=all(source.name == "rooms" for source in sources),
        licence_in_words=_data_licence_in_words(licence, sources),
        fingerprint=fingerprint,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def read_evaluation(folder: Path, repo_id: str, model_fingerprint: str, dtype: str) -> EvaluationTables:
    """The figures of an evaluation's metrics.json.

    Raises:
        FileNotFoundError: no metrics.json in the folder.
        ValueError: it is damaged, or of another model than the one that is published, or of other arithmetic.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no metrics.json; make it by `python eval.py --output {folder}`")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        model, dataset, settings = metrics["model"], metrics["dataset"], metrics["settings"]
        if model["fingerprint"] != model_fingerprint:
            raise ValueError(
                f"{path} holds the figures of another model ({model['name']}, fingerprint "
                f"{model['fingerprint'][:12]}…, not {model_fingerprint[:12]}…): evaluate the one that is published"
            )
        if model["dtype"] != dtype:
            raise ValueError(
                f"{path} holds figures in {model['dtype']}, what is published is in {dtype}: evaluate with "
                f"--dtype {dtype}"
            )
        tables = [_task_table(task, result) for task, result in metrics["tasks"].items()]
        results = [each for task, result in metrics["tasks"].items() for each in _index_entries(task, result, dataset)]
        return EvaluationTables(
            dataset=Path(dataset["name"]).name,
            split=dataset["split"],
            command=eval_command(settings, repo_id),
            tasks=[table for table in tables if table is not None],
            results=results,
            conditions=[f"{name}: {describe_condition(name)}" for name in metrics["conditions"]],
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); evaluate again") from error


def eval_command(settings: dict[str, Any], repo_id: str) -> str:
    """The command that makes an evaluation again, from its run_config."""
    decided, report = settings["predictions"], settings["report"]
    words = ["python", "eval.py", "--model", repo_id, "--dataset", f"data/{Path(settings['dataset']).name}"]
    words += ["--split", decided["split"], "--num-views", str(decided["num_views"])]
    if decided["tasks"]:
        words += ["--task", ",".join(decided["tasks"])]
    if decided["limit"]:
        words += ["--limit", str(decided["limit"])]
    if decided["condition"] != "sighted":
        words.append(
            {"blind": "--blind", "shuffled_images": "--shuffle-images"}.get(decided["condition"], "--single-view")
        )
    if report["controls"]:
        words += ["--controls", ",".join(report["controls"])]
    words += [f"--{flag.replace('_', '-')}" for flag in ("hide_geometry", "hide_depth") if decided[flag]]
    if not decided["constrain_actions"]:
        words.append("--no-constrain-actions")
    if report["protocols"]:
        words += ["--protocol", ",".join(report["protocols"])]
    for group, defaults in ((decided, DECODING), (report, BOOTSTRAP)):
        for key, default in defaults.items():
            if group[key] != default:
                words += [f"--{key.replace('_', '-')}", str(group[key])]
    return shlex.join(words)


def changed_settings(run_config: dict[str, Any]) -> str:
    """The settings of a run that differ from the defaults, as YAML that `train.py --config` reads; places by name."""
    defaults = {f.name: _default(f) for cls in ARGUMENT_CLASSES for f in dataclasses.fields(cls)}
    defaults |= SceneTrainingArguments().to_dict()  # as the library resolves what is left to it
    changed = {
        key: _without_folders(key, value)
        for key, value in run_config.items()
        if key in known_keys() and key not in UNTOLD_SETTINGS and value is not None and value != defaults[key]
    }
    plain = {key: value for key, value in changed.items() if not isinstance(value, dict) or value}
    return yaml.safe_dump(plain, sort_keys=False).strip() if plain else "{}  # the defaults"


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    year = datetime.datetime.now(tz=datetime.UTC).year
    return environment.get_template(template).render(year=year, **values) + "\n"


def _task_table(task: str, result: dict[str, Any]) -> TaskTable | None:
    """The headline figures of one task under each condition; None where nothing was labelled."""
    protocol, by_condition = result["headline_protocol"], result["results"]
    sections = {name: _section(each, protocol) for name, each in by_condition.items() if each is not None}
    if not sections:
        return None
    first = next(iter(sections.values()))
    figures = [
        {"label": figure.label, "cells": [_cell(section, figure) for section in sections.values()]}
        for figure in (ANSWER_FIGURES if protocol else ACTION_FIGURES)
        if figure.metric in first["scores"]
    ]
    count = first["count"] if protocol else first["count"]["all"]
    return TaskTable(TASK_TITLES[task], protocol, count, list(sections), figures)


def _section(result: dict[str, Any], protocol: str | None) -> dict[str, Any]:
    return result["all"] if protocol is None else result["protocols"][protocol]["all"]


def _cell(section: dict[str, Any], figure: Figure) -> str:
    value = format_value(section["scores"].get(figure.metric), figure)
    interval = format_interval(section.get("intervals", {}).get(figure.metric), figure)
    return f"{value} ({interval})" if interval else value


def _index_entries(task: str, result: dict[str, Any], dataset: dict[str, Any]) -> list[EvalResult]:
    """The figures of the condition that was asked for, as the Hub's index of results takes them."""
    first = next(iter(result["results"].values()))
    if first is None:
        return []
    protocol = result["headline_protocol"]
    scores = _section(first, protocol)["scores"]
    known = ANSWER_FIGURES if protocol else ACTION_FIGURES
    return [
        EvalResult(
            task_type="visual-question-answering" if protocol else "object-detection",
            task_name=TASK_TITLES[task],
            dataset_type=task,
            dataset_name=f"{Path(dataset['name']).name} ({task})",
            dataset_split=dataset["split"],
            metric_type=figure.metric,
            metric_name=f"{figure.label}{f' ({protocol})' if protocol else ''}",
            metric_value=round(scores[figure.metric], 4),
        )
        for figure in known
        if scores.get(figure.metric) is not None
    ]


def _default(spec: dataclasses.Field) -> Any:
    return spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default


def _without_folders(key: str, value: Any) -> Any:
    """A place as a reader would name it: `data/rooms` stays, a path of this machine becomes its last part."""
    if key not in PLACES:
        return value
    if isinstance(value, list):
        return [_without_folders(key, item) for item in value]
    path = Path(str(value))
    return path.name if path.is_absolute() or ".." in path.parts else str(value)


def _hub_id(name: str) -> str | None:
    return name if name.count("/") == 1 and " " not in name else None


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "1M<n<10M"


def _data_licence_in_words(licence: str, sources: Sequence[DataSource]) -> str:
    if all(source.name == "rooms" for source in sources):
        return "Apache-2.0. Images, depth, questions and answers are made by this project's own code."
    return f"{licence}, as the owner of the captures has it."
