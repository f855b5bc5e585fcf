"""Every setting of an evaluation, checked before anything costs time, and which of them decide the predictions."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets_scripts.schema import TASKS, read_manifest
from training.data import SceneDataset

from .conditions import CONDITIONS, SIGHTED, Condition
from .files import read_yaml, write_yaml
from .predict import Generation
from .scoring import Scoring

RUN_CONFIG, PREDICTIONS = "run_config.yaml", "predictions.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "llguidance")
GALLERY_SIZE = 600


@dataclass(frozen=True)
class EvalSettings:
    """One evaluation.

    Attributes:
        model: checkpoint folder or Hub id.
        dataset: built dataset folder.
        split: train, val or test.
        tasks: those to evaluate; None = all that the split holds.
        limit: most samples of each task, spread evenly; None = all.
        num_views: views shown of each scene.
        condition: what the model is shown, a key of CONDITIONS.
        controls: further conditions, reported beside it.
        hide_geometry, hide_depth: under every condition.
        output: folder of the results.
        overwrite: discard predictions made with other settings instead of refusing to continue them.
        gallery: most examples of each task in the report.
    """

    model: str
    dataset: str
    split: str
    output: Path
    tasks: tuple[str, ...] | None = None
    limit: int | None = None
    num_views: int = 8
    condition: str = SIGHTED
    controls: tuple[str, ...] = ()
    hide_geometry: bool = False
    hide_depth: bool = False
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    overwrite: bool = False
    gallery: int = GALLERY_SIZE
    generation: Generation = field(default_factory=Generation)
    scoring: Scoring = field(default_factory=Scoring)

    def __post_init__(self) -> None:
        if self.condition in self.controls:
            raise ValueError(f"{self.condition} is what is evaluated and a control as well; leave one out")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, wanted at least 1 sample a task")

    @property
    def conditions(self) -> list[Condition]:
        """What is evaluated, then its controls."""
        chosen = [CONDITIONS[name] for name in (self.condition, *self.controls)]
        return [
            dataclasses.replace(
                each,
                hide_geometry=each.hide_geometry or self.hide_geometry,
                hide_depth=each.hide_depth or self.hide_depth or self.hide_geometry,
            )
            for each in chosen
        ]

    def predictions_of(self, name: str) -> Path:
        """File of the predictions under a condition."""
        return self.output / PREDICTIONS if name == self.condition else self.output / "controls" / name / PREDICTIONS

    def deciding(self, model_fingerprint: str) -> dict[str, Any]:
        """What predictions depend on: they are continued only where all of it is the same."""
        keys = ("split", "tasks", "limit", "num_views", "condition", "hide_geometry", "hide_depth", "dtype")
        chosen = {key: getattr(self, key) for key in (*keys, "attn_implementation")}
        chosen["tasks"] = None if self.tasks is None else list(self.tasks)
        decoding_keys = ("batch_size", "num_beams", "constrain_actions", "max_new_tokens")
        decoding = {key: getattr(self.generation, key) for key in decoding_keys}
        fingerprints = {"model": model_fingerprint, "dataset": read_manifest(self.dataset).fingerprint}
        return {"fingerprints": fingerprints, **chosen, **decoding}


def open_datasets(
    root: str, split: str, num_views: int, tasks: Sequence[str] | None = None, limit: int | None = None
) -> dict[str, SceneDataset]:
    """Task -> its samples, in the order of TASKS; at most `limit` of each.

    Raises:
        NotADatasetError: no manifest.
        ValueError: a split or a task that the dataset lacks; names those it has.
    """
    unknown = [task for task in tasks or () if task not in TASKS]
    if unknown:
        raise ValueError(f"task {', '.join(unknown)} is unknown, wanted among {', '.join(TASKS)}")
    present = {task for *_, task, _ in SceneDataset([root], split, num_views).samples}
    missing = [task for task in tasks or () if task not in present]
    if missing:
        raise ValueError(f"{root}, split {split} has no {', '.join(missing)}; its tasks: {', '.join(sorted(present))}")
    wanted = [task for task in TASKS if task in (tasks or present)]
    datasets = {task: SceneDataset([root], split, num_views, [task]) for task in wanted}
    if limit is not None:
        for dataset in datasets.values():
            dataset.thin(limit)
    return datasets


def prepare_output(settings: EvalSettings, model_fingerprint: str) -> None:
    """Writes run_config.yaml; predictions that are there already must be of the same settings.

    Raises:
        ValueError: they are of others, naming each difference and the ways out.
    """
    deciding = settings.deciding(model_fingerprint)
    path = settings.output / RUN_CONFIG
    written = sorted(settings.output.rglob(PREDICTIONS))
    if written:
        before = read_yaml(path).get("predictions", {}) if path.is_file() else {}
        differing = [key for key in deciding if before.get(key) != deciding[key]]
        if differing and not settings.overwrite:
            changes = "; ".join(f"{key} was {before.get(key)}, is {deciding[key]}" for key in differing)
            raise ValueError(
                f"{settings.output} holds predictions of other settings ({changes}): choose another --output, or "
                "discard them by --overwrite"
            )
        if differing:
            for old in written:
                old.unlink()
    write_yaml(path, run_config(settings, deciding))


def run_config(settings: EvalSettings, deciding: dict[str, Any]) -> dict[str, Any]:
    """Every setting as it was resolved, and the versions that ran."""
    scoring = settings.scoring
    return {
        "model": settings.model,
        "dataset": settings.dataset,
        "predictions": deciding,
        "report": {
            "controls": list(settings.controls),
            "protocols": None if scoring.protocols is None else list(scoring.protocols),
            "num_resamples": scoring.num_resamples,
            "seed": scoring.seed,
            "gallery": settings.gallery,
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that answers depend on, as far as they are installed."""
    installed = [name for name in LIBRARIES if find_spec(name) is not None]
    return {"python": sys.version.split()[0], **{name: version(name) for name in installed}}
