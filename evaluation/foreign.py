"""Answers made elsewhere, joined to a built dataset, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_scripts.schema import SAMPLE_SPLITS, read_manifest
from training.data import SceneDataset, SceneExample

from .files import read_rows, read_yaml
from .rows import Row, sample_row
from .scoring import Scoring
from .settings import GALLERY_SIZE, RUN_CONFIG

NAMES_SHOWN = 3
FOREIGN = "predictions"
ID_KEYS, ANSWER_KEYS = ("sample_id", "question_id"), ("prediction", "answer", "action", "answer_top10")


@dataclass(frozen=True)
class ScoreSettings:
    """Answers in a file and the data they belong to; see `EvalSettings` for the rest."""

    predictions: Path
    dataset: str
    split: str
    output: Path
    tasks: tuple[str, ...] | None = None
    num_views: int = 8
    gallery: int = GALLERY_SIZE
    scoring: Scoring = field(default_factory=Scoring)


@dataclass(frozen=True)
class Answer:
    """One answer. `candidates`: ten of them, the answer first; `claims`: what the file says of the sample."""

    text: str
    candidates: list[str] | None
    claims: dict[str, Any]


def read_answers(path: Path) -> dict[str, Answer]:
    """Sample id -> answer, from JSON Lines, a JSON list of objects, or a JSON mapping of ids to texts.

    An object has `sample_id` or `question_id`, and `prediction`, `answer`, `action` or ScanQA's `answer_top10`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another form, a row without id or answer, an id that is repeated.
    """
    answers: dict[str, Answer] = {}
    for number, row in enumerate(_objects(path), start=1):
        sample_id = next((str(row[key]) for key in ID_KEYS if key in row), None)
        if sample_id is None:
            raise ValueError(f"{path}, row {number} has no {' or '.join(ID_KEYS)}, only {', '.join(row)}")
        if sample_id in answers:
            raise ValueError(f"{path}, row {number} repeats the id {sample_id!r}; one answer a sample")
        answers[sample_id] = _answer(row, f"{path}, row {number}")
    if not answers:
        raise ValueError(f"{path} holds no answer")
    return answers


def join_answers(answers: Mapping[str, Answer], datasets: Mapping[str, SceneDataset], path: Path) -> list[Row]:
    """Rows of all samples, in the order of the tasks; views are those that our own evaluation would show.

    Raises:
        ValueError: unknown or missing samples, or answers that belong to other data; names them.
    """
    _check_origin(path, datasets)
    samples = [dataset.sample(index) for dataset in datasets.values() for index in range(len(dataset))]
    _check_ids(answers, [sample["sample_id"] for sample in samples], datasets, path)
    for sample in samples:
        _check_claims(sample, answers[sample["sample_id"]], path)
    rows = []
    for dataset in datasets.values():
        for draw in dataset.fixed_draws(len(dataset)):
            truth = dataset[draw]
            rows += [_row(sample, answers[sample["sample_id"]], truth) for sample in truth.samples]
    return rows


def _row(sample: Mapping[str, Any], answer: Answer, truth: SceneExample) -> Row:
    row = sample_row(sample, answer.text, truth)
    row["flags"] = {"condition": FOREIGN}
    return row | ({} if answer.candidates is None else {"candidates": answer.candidates})


def _objects(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of predictions {path}")
    if path.suffix == ".jsonl":
        return read_rows(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; JSON Lines must end in .jsonl") from error
    if isinstance(content, dict):
        return [{"sample_id": name, "prediction": text} for name, text in content.items()]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return content
    raise ValueError(f"{path} holds {type(content).__name__}, wanted a list of objects or a mapping of ids to texts")


def _answer(row: Mapping[str, Any], where: str) -> Answer:
    key = next((key for key in ANSWER_KEYS if row.get(key) is not None), None)
    if key is None:
        raise ValueError(f"{where} has no answer: wanted one of {', '.join(ANSWER_KEYS)}, found {', '.join(row)}")
    value, candidates = row[key], None
    if key == "answer_top10" and isinstance(value, list) and value:
        value, candidates = value[0], value if len(value) == 10 else None
    if isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} is {value!r}, wanted a text")
    return Answer(value, candidates, {key: row[key] for key in ("scene_id", "question") if key in row})


def _check_origin(path: Path, datasets: Mapping[str, SceneDataset]) -> None:
    """Refuses a file of our own evaluation of other data; a foreign one says nothing of where it comes from."""
    config = path.parent / RUN_CONFIG
    if not config.is_file():
        return
    before = read_yaml(config).get("predictions", {})
    root = next(iter(datasets.values())).roots[0]
    fingerprint = before.get("fingerprints", {}).get("dataset")
    if fingerprint is not None and fingerprint != read_manifest(root).fingerprint:
        raise ValueError(f"{path} holds predictions for another dataset than {root}: {config} names {fingerprint}")


def _check_ids(
    answers: Mapping[str, Answer], wanted: Sequence[str], datasets: Mapping[str, SceneDataset], path: Path
) -> None:
    known = set(wanted)
    unknown = [name for name in answers if name not in known]
    missing = [name for name in wanted if name not in answers]
    if not unknown and not missing:
        return
    first = next(iter(datasets.values()))
    where = f"{first.roots[0]}, split {first.split}, {', '.join(datasets)}"
    if len(unknown) == len(answers):
        raise ValueError(
            f"{path}: none of its {len(answers)} ids is in {where} (the first is {unknown[0]!r}, there {wanted[0]!r}): "
            f"these are predictions for another dataset, split or task{_found_elsewhere(unknown[0], first)}"
        )
    faults = []
    if unknown:
        faults.append(f"{len(unknown)} unknown ids ({_some(unknown)}){_found_elsewhere(unknown[0], first)}")
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} samples without a prediction ({_some(missing)})")
    raise ValueError(f"{path} does not match {where}: {'; '.join(faults)}. Every sample needs exactly one prediction")


def _found_elsewhere(sample_id: str, dataset: SceneDataset) -> str:
    root = Path(dataset.roots[0])
    for split in SAMPLE_SPLITS:
        if split == dataset.split or not (root / "samples" / split).is_dir():
            continue
        other = SceneDataset([root], split, 1)
        if any(sample_id in table["sample_id"] for table in other.sample_tables):
            return f"; {sample_id} is of the split {split}"
    return ""


def _check_claims(sample: Mapping[str, Any], answer: Answer, path: Path) -> None:
    for key, claimed in answer.claims.items():
        if claimed != sample[key]:
            raise ValueError(
                f"{path}: the row of {sample['sample_id']} has {key} {claimed!r}, the dataset {sample[key]!r}: "
                "these are predictions for another dataset"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
