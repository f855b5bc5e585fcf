"""report.html: figures beside their controls, by question type, by protocol, and the examples themselves."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from datasets_scripts.schema import ACTION_TASKS

from .charts import Group, Point, dot_plot
from .gallery import (
    LABEL_OF_VERDICT,
    VERDICT_LABELS,
    Pictures,
    answer_line,
    card,
    control_line,
    gallery_data,
    reference_lines,
    shuffled,
    spread,
)
from .page import gallery, heading, page, section, table
from .published import CAVEAT, published
from .results import Evaluation, Figure, describe_condition, figures_of, format_interval, format_value
from .rows import select
from .scoring import VERDICTS_OF_ACTIONS, VERDICTS_OF_ANSWERS, TaskScores

TASK_TITLES = {
    "scanqa": "ScanQA",
    "sqa3d": "SQA3D",
    "actions": "Actions",
    "rooms_qa": "Questions about procedural rooms",
    "rooms_actions": "Anchors in procedural rooms",
}
CONDITION_TITLES = {
    "sighted": "With images",
    "blind": "Blind",
    "single_view": "First view alone",
    "two_views": "First two views",
    "four_views": "First four views",
    "shuffled_views": "Views in another order",
    "shuffled_images": "Another room’s images",
    "no_geometry": "Without cameras",
    "no_depth": "Without depth",
    "predictions": "Predictions",
}
KEY_ANSWER_FIGURES = ("EM@1", "EM-R", "CIDEr")
KEY_ACTION_FIGURES = ("iou_over_0.25", "label_accuracy", "center_error_median_m", "f1@0.25")
KIND_FIGURES = ("label_accuracy", "iou_over_0.25", "iou_mean", "center_error_median_m", "f1@0.25")
PROTOCOL_FIGURES = ("EM@1", "EM-R", "EM@10", "BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
BOXES_NOTE = (
    ' Boxes: <span style="color:var(--truth)">true</span> and <span style="color:var(--predicted)">predicted'
    "</span>; the line on a plan points out of the front; the blue wedge is the first camera."
)


def render_report(evaluation: Evaluation, gallery_size: int) -> str:
    """The page. `gallery_size`: most examples of a task."""
    tasks = list(evaluation.scores)
    sections = [_task_section(task, evaluation) for task in tasks]
    data, shelf = _examples(evaluation, gallery_size)
    body = f"{_heading(evaluation)}<main>{''.join(sections)}{shelf}{_method(evaluation)}</main>{_footer(evaluation)}"
    return page(f"{evaluation.model['name']}: evaluation", body, data)


def condition_title(name: str) -> str:
    """A condition in words."""
    return CONDITION_TITLES.get(name, name)


def format_p(p_value: float) -> str:
    """A p-value as papers print it."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def short_name(name: str) -> str:
    """A Hub id or relative path as it is, a long path by its last folder."""
    parts = Path(name).parts
    return name if len(parts) <= 2 else parts[-1]


def _heading(evaluation: Evaluation) -> str:
    model, dataset = evaluation.model, evaluation.dataset
    count = len(evaluation.rows[evaluation.main])
    lede = f"{count:,} answers on {short_name(dataset['name'])}, split {dataset['split']}"
    facts = [("Data", dataset["fingerprint"][:12])]
    if "parameters" in model:
        lede += f"; the model sees {describe_condition(evaluation.main)}"
        facts = [
            ("Parameters", f"{model['parameters'] / 1e6:,.1f} M"),
            ("Precision", model["dtype"]),
            ("Weights", model["fingerprint"][:12]),
            *facts,
            ("Views", str(evaluation.settings["predictions"]["num_views"])),
        ]
    return heading("Evaluation", short_name(model["name"]), f"{lede}.", facts)


# ---------------------------------------------------------------------------------------------------------------- tasks


def _task_section(task: str, evaluation: Evaluation) -> str:
    by_condition = evaluation.scores[task]
    scores = by_condition[evaluation.main]
    count = len(scores.verdicts)
    title = TASK_TITLES[task]
    if scores.result is None:
        return section(title, f"{count:,} answers. This split has no labels to score them against.", "")
    unlabelled = scores.result["unlabelled"]
    note = f"{count - unlabelled:,} scored" + (f", {unlabelled:,} without labels" if unlabelled else "") + "."
    if scores.headline:
        note += f" Figures follow the protocol <em>{escape(scores.headline)}</em>."
    if task in ACTION_TASKS and evaluation.settings.get("predictions", {}).get("constrain_actions"):
        note += " The model could answer with nothing but actions."
    parts = [_key_figures(task, evaluation), _verdicts(scores), _figure_table(by_condition)]
    parts += [_by_type(by_condition), _by_kind(scores), _protocols(scores), _published(task, evaluation)]
    gaps = "".join(f"<p><small>Not computed: {escape(gap)}.</small></p>" for gap in scores.result["gaps"])
    return section(title, note, "".join(parts) + gaps)


def _key_figures(task: str, evaluation: Evaluation) -> str:
    by_condition = evaluation.scores[task]
    scores = by_condition[evaluation.main]
    keys = KEY_ANSWER_FIGURES if scores.headline else KEY_ACTION_FIGURES
    chosen = [figure for figure in figures_of(scores) if figure.metric in keys]
    blocks = []
    for figure in sorted(chosen, key=lambda figure: keys.index(figure.metric)):
        value = scores.row["scores"][figure.metric]
        interval = format_interval(scores.row.get("intervals", {}).get(figure.metric), figure)
        number = "∞" if value is None else f"{value:.{figure.digits}f}"
        beside = [
            _beside(name, other, figure, evaluation.paired[task].get(name))
            for name, other in by_condition.items()
            if other is not scores
        ]
        blocks.append(
            f'<div class="figure"><dt>{escape(figure.label)}</dt><dd><span class="value">{number}</span>'
            f'<span class="unit">{figure.unit}</span>'
            f'<span class="interval">{f"95 % interval {interval}" if interval else ""}</span>'
            f'<span class="beside">{"".join(beside)}</span></dd></div>'
        )
    return f'<dl class="figures">{"".join(blocks)}</dl>'


def _beside(name: str, other: TaskScores, figure: Figure, paired: dict[str, Any] | None) -> str:
    value = format_value(other.row["scores"].get(figure.metric), figure)
    tested = (paired or {}).get("metrics", {}).get(figure.metric)
    if figure.metric == "EM@1" and paired:
        chance = f"{format_p(paired['right']['p'])}"
    else:
        chance = f"{format_p(tested['p'])}" if tested else ""
    return f"<span>{condition_title(name)}</span><b>{value}</b><span>{chance}</span>"


def _verdicts(scores: TaskScores) -> str:
    counts = {verdict: scores.verdicts.count(verdict) for verdict, _ in VERDICT_LABELS}
    present = [(verdict, label) for verdict, label in VERDICT_LABELS if counts[verdict]]
    bar = "".join(f'<i class="{verdict}" style="flex:{counts[verdict]}"></i>' for verdict, _ in present)
    key = "".join(
        f'<li><span class="mark {verdict}"></span>{label} {counts[verdict]:,}</li>' for verdict, label in present
    )
    return f'<div><div class="share">{bar}</div><ul class="key">{key}</ul></div>'


def _figure_table(by_condition: dict[str, TaskScores]) -> str:
    first = next(iter(by_condition.values()))
    if len(figures_of(first)) == 1:  # it stands above already
        return ""
    rows = [
        [escape(figure.label), *(_cell(scores.row, figure) for scores in by_condition.values())]
        for figure in figures_of(first)
    ]
    head = ["", *(escape(condition_title(name)) for name in by_condition)]
    caption = "Small figures: 95 % bootstrap intervals." if "intervals" in first.row else ""
    return table(head, rows, caption)


def _cell(row: dict[str, Any], figure: Figure) -> str:
    if figure.metric not in row["scores"]:
        return "–"
    interval = format_interval(row.get("intervals", {}).get(figure.metric), figure)
    return format_value(row["scores"][figure.metric], figure) + (f"<small>{interval}</small>" if interval else "")


def _by_type(by_condition: dict[str, TaskScores]) -> str:
    first = next(iter(by_condition.values()))
    metric, label = ("EM@1", "Exact match") if first.headline else ("iou_over_0.25", "IoU at least 0.25")
    names = [name for name, row in first.by_type.items() if metric in row["scores"]]
    if not names:
        return ""
    names.sort(key=lambda name: -first.by_type[name]["scores"][metric])
    groups = [
        Group(
            name,
            _count(first.by_type[name]),
            [_point(scores.by_type[name], metric) for scores in by_condition.values()],
        )
        for name in names
    ]
    series = [condition_title(name) for name in by_condition]
    chart = dot_plot(groups, series, "%", f"{label} by question type")
    return f"<div><h3>{label} by question type</h3>{chart}</div>"


def _count(row: dict[str, Any]) -> int:
    return row["count"]["place_anchor"] if isinstance(row["count"], dict) else row["count"]


def _point(row: dict[str, Any], metric: str) -> Point | None:
    if row["scores"].get(metric) is None:
        return None
    low, high = row.get("intervals", {}).get(metric, (None, None))
    return Point(row["scores"][metric], low, high)


def _by_kind(scores: TaskScores) -> str:
    """For actions: thin things and furniture apart, and with the scale set right by an oracle."""
    if scores.headline:
        return ""
    rows = {"All": scores.result["all"]}
    rows |= {
        name.capitalize(): row for name, row in scores.result["by_kind"].items() if len(scores.result["by_kind"]) > 1
    }
    if "oracle_scale" in scores.result:
        rows["All, scaled right by an oracle"] = scores.result["oracle_scale"]
    figures = [figure for figure in figures_of(scores) if figure.metric in KIND_FIGURES]
    body = [
        [escape(name), f"{row['count']['all']:,}", *(_plain(row, figure) for figure in figures)]
        for name, row in rows.items()
    ]
    head = ["", "Asked", *(escape(figure.label) for figure in figures)]
    caption = (
        "Thin: planes and whatever is thinner than 0.10 m; furniture: the rest; mixed: sets of both. The oracle "
        "multiplies each prediction by the one factor that fits best: what it gains was lost to scale alone."
    )
    return f"<div><h3>By kind of thing</h3>{table(head, body, caption)}</div>"


def _plain(row: dict[str, Any], figure: Figure) -> str:
    return format_value(row["scores"][figure.metric], figure) if figure.metric in row["scores"] else "–"


def _protocols(scores: TaskScores) -> str:
    if not scores.headline or len(scores.result["protocols"]) < 2:
        return ""
    entries = scores.result["protocols"]
    names = [name for name in PROTOCOL_FIGURES if any(name in entry["all"]["scores"] for entry in entries.values())]
    rows = []
    for protocol, entry in entries.items():
        values = (entry["all"]["scores"].get(name) for name in names)
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        rows.append([escape(protocol), *cells, _why(entry["difference"])])
    marked = list(entries).index(scores.headline)
    head = ["Protocol", *names, '<th scope="col" class="why">What it does</th>']
    intro = (
        "<p>Published figures follow different rules under one name. These are the same answers under each of them.</p>"
    )
    return f"<div><h3>The same answers under every protocol</h3>{intro}{table(head, rows, marked=marked)}</div>"


def _published(task: str, evaluation: Evaluation) -> str:
    systems = published(task, evaluation.dataset["split"])
    if not systems:
        return ""
    scores = evaluation.scores[task][evaluation.main]
    names = [name for name in ("EM@1", "CIDEr") if any(name in each.scores for each in systems)]
    ours = [
        escape(short_name(evaluation.model["name"])),
        *(_number(scores.row["scores"].get(name)) for name in names),
        "this run",
    ]
    others = [
        [escape(each.system), *(_number(each.scores.get(name)) for name in names), _why(each.source)]
        for each in systems
    ]
    body = table(
        ["System", *names, '<th scope="col" class="why">Source</th>'],
        [ours, *others],
        f"{CAVEAT.capitalize()}.",
        marked=0,
    )
    return f"<div><h3>Beside published figures</h3>{body}</div>"


def _why(text: str) -> str:
    """A cell of words, not of numbers."""
    return f'<td class="why">{escape(text)}</td>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


# ------------------------------------------------------------------------------------------------------------- examples


def _examples(evaluation: Evaluation, gallery_size: int) -> tuple[dict[str, Any], str]:
    pictures = Pictures(next(iter(evaluation.scenes.values())))
    cards = [each for task in evaluation.scores for each in _task_cards(task, evaluation, gallery_size, pictures)]
    total = len(evaluation.rows[evaluation.main])
    shown = {each["verdict"] for each in cards}
    verdicts = [pair for pair in VERDICT_LABELS if pair[0] in shown]
    chosen = "Every answer" if len(cards) == total else f"{len(cards):,} of {total:,} answers, none picked by hand"
    note = f"{chosen}, in mixed order." + (BOXES_NOTE if any("plan" in each for each in cards) else "")
    types = sorted({each["type"] for each in cards})
    shelf = gallery(list(evaluation.scores), types, verdicts, note)
    return gallery_data(shuffled(cards), pictures, total), shelf


def _task_cards(task: str, evaluation: Evaluation, limit: int, pictures: Pictures) -> Iterable[dict[str, Any]]:
    rows = {name: select(chosen, task) for name, chosen in evaluation.rows.items()}
    scores = evaluation.scores[task]
    main = evaluation.main
    for index in spread(len(rows[main]), limit):
        row, verdict = rows[main][index], scores[main].verdicts[index]
        lines = [answer_line("Answer", row, verdict), *reference_lines(row)]
        for name in evaluation.conditions[1:]:
            other = scores[name]
            lines.append(
                control_line(condition_title(name), rows[name][index], other.verdicts[index], other.details[index])
            )
        example = card(row, verdict, LABEL_OF_VERDICT[verdict], scores[main].details[index], lines)
        pictures.add(example, row)
        yield example


# --------------------------------------------------------------------------------------------------------------- method


def _method(evaluation: Evaluation) -> str:
    prompts = "".join(
        f"<h3>Prompt, {escape(TASK_TITLES[task])}</h3><pre>{escape(prompt)}</pre>"
        for task, prompt in evaluation.prompts.items()
    )
    conditions = "".join(
        f"<li><b>{escape(condition_title(name))}</b>: the model sees {escape(describe_condition(name))}.</li>"
        for name in evaluation.conditions
        if name != "predictions"
    )
    verdicts = {
        VERDICTS_OF_ANSWERS if scores[evaluation.main].headline else VERDICTS_OF_ACTIONS
        for scores in evaluation.scores.values()
    }
    meaning = "".join(f"<p>{escape(text[0].upper() + text[1:])}.</p>" for text in sorted(verdicts))
    tests = ""
    if len(evaluation.conditions) > 1:
        tests = (
            "<p>p-values compare the first column with a control on the same samples: exact McNemar test for right and "
            "wrong, paired bootstrap for other scores.</p>"
        )
    listed = f"<ul>{conditions}</ul>" if conditions else ""
    return section("How it was made", "", f"<div>{meaning}{tests}{listed}</div>{prompts}")


def _footer(evaluation: Evaluation) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in evaluation.settings.get("versions", {}).items())
    files = "All answers are in predictions.jsonl, all scores in metrics.json, all settings in run_config.yaml."
    return f"<footer><p>{files}</p><p>{escape(versions)}</p></footer>"
