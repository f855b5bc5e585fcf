"""Two evaluations of the same samples side by side: what changed, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from datasets_scripts.schema import TASKS, read_manifest
from training.data import SceneDataset

from .files import read_rows, read_yaml, write_text
from .gallery import Pictures, answer_line, card, gallery_data, reference_lines, spread
from .page import gallery, heading, page, section, table
from .paired import compare_scores
from .report import TASK_TITLES
from .results import ACTION_FIGURES, ANSWER_FIGURES
from .rows import Row, select
from .scoring import RIGHT, Scoring, TaskScores, score_task
from .settings import GALLERY_SIZE, PREDICTIONS, RUN_CONFIG

GAINED, LOST, BOTH, NEITHER = "right", "wrong", "partly", "unlabelled"
CHANGE_LABELS = ((GAINED, "Gained"), (LOST, "Lost"), (BOTH, "Right in both"), (NEITHER, "Wrong in both"))
NAMES_SHOWN = 3


@dataclass(frozen=True)
class CompareSettings:
    """Two folders of evaluations or their predictions.jsonl; `output`: HTML file, by default beside the second."""

    first: Path
    second: Path
    output: Path | None = None
    scoring: Scoring = field(default_factory=Scoring)


@dataclass(frozen=True)
class Side:
    """One of the two: its rows, and the settings they were made with (empty for foreign files)."""

    name: str
    path: Path
    rows: list[Row]
    config: dict[str, Any]

    @property
    def dataset_fingerprint(self) -> str | None:
        """Of the data it was asked about, or None where the file does not say."""
        return self.config.get("predictions", {}).get("fingerprints", {}).get("dataset")


@dataclass(frozen=True)
class TaskComparison:
    """One task on both sides, and what `compare_scores` says of (first, second)."""

    rows: tuple[list[Row], list[Row]]
    scores: tuple[TaskScores, TaskScores]
    tests: dict[str, Any]


def compare(settings: CompareSettings) -> dict[str, TaskComparison]:
    """Compares, prints a table and writes the page.

    Raises:
        FileNotFoundError: a side without predictions.
        ValueError: sides that do not answer the same samples of the same data, by name.
    """
    sides = (_read_side(settings.first), _read_side(settings.second))
    _check_match(*sides)
    order = {row["sample_id"]: index for index, row in enumerate(sides[0].rows)}
    second = sorted(sides[1].rows, key=lambda row: order[row["sample_id"]])
    compared = {}
    for task in [task for task in TASKS if select(sides[0].rows, task)]:
        rows = (select(sides[0].rows, task), select(second, task))
        scores = tuple(score_task(task, each, settings.scoring) for each in rows)
        compared[task] = TaskComparison(rows, scores, compare_scores(*scores))
    output = settings.output or sides[1].path.parent / f"compare-{_slug(sides[0].name)}-{_slug(sides[1].name)}.html"
    write_text(output, render(compared, *sides))
    print(console(compared, *sides))
    print(output)
    return compared


def console(compared: Mapping[str, TaskComparison], first: Side, second: Side) -> str:
    """The tests of every task as text."""
    lines = [f"A  {first.name}", f"B  {second.name}"]
    for task, each in compared.items():
        right = each.tests["right"]
        lines += [
            "",
            f"{task}: {each.tests['count']} samples; right in both {right['both']}, only in A {right['only_first']}, "
            f"only in B {right['only_second']}, in neither {right['neither']}; McNemar p = {right['p']:.4g}",
        ]
        for metric, test in each.tests["metrics"].items():
            low, high = test["interval"]
            lines.append(
                f"  {metric:22} A {test['first']:8.3f}   B {test['second']:8.3f}   B-A {test['difference']:+8.3f} "
                f"({low:+.3f} to {high:+.3f})   p = {test['p']:.4g}"
            )
    return "\n".join(lines)


def render(compared: Mapping[str, TaskComparison], first: Side, second: Side) -> str:
    """The page of a comparison."""
    pictures = Pictures(_find_dataset(first, second))
    cards = [each for comparison in compared.values() for each in _cards(comparison, pictures)]
    total = sum(len(each.rows[0]) for each in compared.values())
    sections = "".join(_section(task, each) for task, each in compared.items())
    types = sorted({each["type"] for each in cards})
    shown = {each["verdict"] for each in cards}
    note = "Changed answers first. A card shows what B saw."
    shelf = gallery(list(compared), types, [pair for pair in CHANGE_LABELS if pair[0] in shown], note)
    lede = f"From A, {first.name}, to B, {second.name}, on the same {total:,} samples."
    facts = [("A", str(first.path)), ("B", str(second.path))]
    body = f"{heading('Comparison', 'What changed', lede, facts)}<main>{sections}{shelf}</main>"
    return page(f"{first.name} and {second.name}", body, gallery_data(cards, pictures, total))


def _section(task: str, comparison: TaskComparison) -> str:
    tests, right = comparison.tests, comparison.tests["right"]
    counts = [("Gained", right["only_second"]), ("Lost", right["only_first"])]
    counts += [("Right in both", right["both"]), ("Wrong in both", right["neither"])]
    figures = "".join(
        f'<div class="figure"><dt>{name}</dt><dd><span class="value">{count:,}</span></dd></div>'
        for name, count in counts
    )
    note = (
        f"{tests['count']:,} samples with labels. If neither were better, a split as uneven as this would come up with "
        f"probability {right['p']:.3g} (exact McNemar test)."
    )
    return section(TASK_TITLES[task], note, f'<dl class="figures counts">{figures}</dl>{_tests(tests)}')


def _tests(tests: Mapping[str, Any]) -> str:
    labels = {figure.metric: figure for figure in (*ANSWER_FIGURES, *ACTION_FIGURES)}
    rows = []
    for metric, test in tests["metrics"].items():
        figure = labels[metric]
        low, high = (f"{end:+.{figure.digits}f}" for end in test["interval"])
        sign = "better" if low[0] == "+" and float(low) > 0 else "worse" if float(high) < 0 else ""
        change = f'<span class="{sign}">{test["difference"]:+.{figure.digits}f}</span><small>{low} – {high}</small>'
        values = (f"{test[side]:.{figure.digits}f}" for side in ("first", "second"))
        rows.append([escape(figure.label), *values, change, f"{test['p']:.3g}"])
    return table(
        ["", "A", "B", "B − A", "p"], rows, "Intervals and p of the difference: paired bootstrap over samples."
    )


def _cards(comparison: TaskComparison, pictures: Pictures) -> Iterable[dict[str, Any]]:
    """Cards of changed examples first, then of the others, each evenly spaced."""
    verdicts = list(zip(*(scores.verdicts for scores in comparison.scores)))
    changed = [i for i, (a, b) in enumerate(verdicts) if (a == RIGHT) != (b == RIGHT)]
    same = [i for i, (a, b) in enumerate(verdicts) if (a == RIGHT) == (b == RIGHT)]
    chosen = [changed[i] for i in spread(len(changed), GALLERY_SIZE)]
    chosen += [same[i] for i in spread(len(same), max(0, GALLERY_SIZE - len(chosen)))]
    for index in chosen:
        a, b = (rows[index] for rows in comparison.rows)
        change = _change(*verdicts[index])
        lines = [answer_line("A", a, verdicts[index][0]), answer_line("B", b, verdicts[index][1]), *reference_lines(b)]
        details = " → ".join(scores.details[index] for scores in comparison.scores if scores.details[index])
        example = card(b, change, dict(CHANGE_LABELS)[change], details, lines)
        pictures.add(example, b)
        yield example


def _change(first: str, second: str) -> str:
    if (first == RIGHT) != (second == RIGHT):
        return GAINED if second == RIGHT else LOST
    return BOTH if second == RIGHT else NEITHER


def _read_side(path: Path) -> Side:
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no {PREDICTIONS}: it is no evaluation, or one that has not begun")
    folders = [file.parent, file.parent.parent.parent]  # controls/<name>/ lie below the evaluation
    configs = [folder / RUN_CONFIG for folder in folders if (folder / RUN_CONFIG).is_file()]
    rows = read_rows(file)
    if not rows:
        raise ValueError(f"{file} is empty: that evaluation has not begun")
    return Side(_name_of(file), file, rows, read_yaml(configs[0]) if configs else {})


def _name_of(file: Path) -> str:
    folder = file.parent
    is_control = folder.parent.name == "controls"
    return f"{folder.parent.parent.name} {folder.name}" if is_control else folder.name


def _check_match(first: Side, second: Side) -> None:
    a, b = first.dataset_fingerprint, second.dataset_fingerprint
    if a is not None and b is not None and a != b:
        raise ValueError(f"{first.path} and {second.path} answer different datasets ({a[:12]} and {b[:12]})")
    for side in (first, second):
        ids = [row["sample_id"] for row in side.rows]
        if len(set(ids)) < len(ids):
            repeated = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"{side.path} repeats the sample {repeated!r}")
    ids_a, ids_b = ({row["sample_id"] for row in side.rows} for side in (first, second))
    if ids_a != ids_b:
        faults = []
        for side, missing in ((first, ids_b - ids_a), (second, ids_a - ids_b)):
            if missing:
                faults.append(f"{side.path} lacks {len(missing)} ({', '.join(sorted(missing)[:NAMES_SHOWN])})")
        raise ValueError(f"the two do not answer the same samples: {'; '.join(faults)}")


def _find_dataset(*sides: Side) -> SceneDataset | None:
    """The dataset the rows name, for its pictures, if it is still where it was and what it was."""
    for side in sides:
        root, fingerprint = side.config.get("dataset"), side.dataset_fingerprint
        if root and (Path(root) / "manifest.json").is_file() and read_manifest(root).fingerprint == fingerprint:
            return SceneDataset([root], side.config["predictions"]["split"], side.config["predictions"]["num_views"])
    return None


def _slug(name: str) -> str:
    return "-".join(name.split())
