"""The figures of the small model as tables, between two marks of docs/rooms.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from evaluation.conditions import CONDITIONS, SIGHTED

from .rooms_rows import ROWS

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES = REPOSITORY / "docs" / "figures" / "rooms.json"
DOCS = REPOSITORY / "docs" / "rooms.md"
BEGIN = "<!-- written by python -m benchmarks.rooms_table --render -->"
END = "<!-- end of what is written -->"

Entry = dict[str, Any]
Number = dict[str, Any]


def render(figures: Path, page: Path) -> None:
    """Writes the tables of a file of figures into a page.

    Raises:
        FileNotFoundError: there are no figures.
        ValueError: the page lacks the marks.
    """
    if not figures.is_file():
        raise FileNotFoundError(f"no figures {figures}: train first, see python -m benchmarks.rooms_table --help")
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN!r} and {END!r}, between which the tables stand")
    rows = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    page.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{after}", encoding="utf-8")


def tables(rows: Sequence[Entry]) -> str:
    """All tables of the figures, and what they were measured on."""
    main = [entry for entry in rows if entry["row"] == "main"]
    blocks = []
    if main:
        best = max(_scales(entry) for entry in main)
        chosen = [entry for entry in main if _scales(entry) == best]
        blocks += [_results(chosen), _by_type(chosen)]
    for scales in sorted({_scales(entry) for entry in rows if entry["row"] != "main"}, reverse=True):
        blocks.append(_ablations([entry for entry in rows if _scales(entry) == scales]))
    blocks.append(_times(rows))
    return "\n\n".join([*blocks, *_notes(rows)])


def _scales(entry: Entry) -> tuple[float, float, int]:
    shared = entry["encoder_seed"]
    return entry["scale"], entry["encoder_scale"], -1 if shared is None else shared


# ---------------------------------------------------------------------------------------------------------- the tables

COLUMNS: tuple[tuple[str, Callable[[Entry], Number | None], int], ...] = (
    ("answers right, %", lambda found: _question(found["questions"]), 1),
    ("centre, m", lambda found: _of(found["furniture"], "center_error_median_m"), 3),
    ("IoU ≥ 0.25, %", lambda found: _of(found["furniture"], "iou_over_0.25"), 1),
    ("IoU ≥ 0.5, %", lambda found: _of(found["furniture"], "iou_over_0.50"), 1),
    ("normal ≤ 15°, %", lambda found: _of(found["furniture"], "normal_within_15_deg_placed"), 1),
    ("flat: centre, m", lambda found: _of(found["thin"], "center_error_median_m"), 3),
    ("flat: IoU ≥ 0.25, %", lambda found: _of(found["thin"], "iou_over_0.25"), 1),
    ("lists: F1 at 0.25", lambda found: _of(found["lists"], "f1@0.25"), 1),
)


def _results(entries: Sequence[Entry]) -> str:
    """Every condition of the main row."""
    rows = [["the model sees", *(title for title, *_ in COLUMNS)]]
    for name in entries[0]["conditions"]:
        found = [entry["conditions"][name] for entry in entries]
        rows.append([CONDITIONS[name].description, *(_cell([get(each) for each in found], d) for _, get, d in COLUMNS)])
    return f"**Held-out rooms**, {_title(entries)}:\n\n{_markdown(rows)}"


def _by_type(entries: Sequence[Entry]) -> str:
    """Questions of each type: whole input, blind, what seeing gains."""
    first = entries[0]["conditions"][SIGHTED]["questions"]["by_type"]
    rows = [["question begins", "number", "right, %", "blind, %", "gain"]]
    for name in sorted(first, key=lambda each: -first[each]["count"]):
        sighted, blind = (
            [entry["conditions"][condition]["questions"]["by_type"][name] for entry in entries]
            for condition in (SIGHTED, "blind")
        )
        gain = _cell([{"value": each["gain"], "interval": None} for each in sighted], 1)
        count = f"{first[name]['count']:,}"
        rows.append([name, count, *(_cell([_question(e) for e in each], 1) for each in (sighted, blind)), gain])
    gains = [entry["conditions"][SIGHTED]["questions"]["gain"] for entry in entries]
    rows.append(["all", f"{entries[0]['conditions'][SIGHTED]['questions']['count']:,}"])
    rows[-1] += [_cell([_question(e["conditions"][c]["questions"]) for e in entries], 1) for c in (SIGHTED, "blind")]
    rows[-1].append(_cell(gains, 1))
    return f"**By type of question**, the same model:\n\n{_markdown(rows)}"


def _ablations(entries: Sequence[Entry]) -> str:
    """One line a row, sighted, and what matters under other conditions."""
    further = (
        ("blind: right, %", lambda found: _question(found["questions"]), 1, "blind"),
        ("without depth: centre, m", lambda found: _of(found["furniture"], "center_error_median_m"), 3, "no_depth"),
        ("without cameras: right, %", lambda found: _question(found["questions"]), 1, "no_geometry"),
    )
    columns = [*((title, get, digits, SIGHTED) for title, get, digits in COLUMNS), *further]
    rows = [["model", "parameters", *(title for title, *_ in columns)]]
    names = [name for name in ROWS if any(entry["row"] == name for entry in entries)]
    for name in names:
        chosen = [entry for entry in entries if entry["row"] == name]
        cells = [
            _cell([get(entry["conditions"][c]) for entry in chosen if c in entry["conditions"]], digits)
            for _, get, digits, c in columns
        ]
        rows.append([ROWS[name].title, f"{chosen[0]['parameters'] / 1e6:.1f} M", *cells])
    return f"**One thing changed**, {_title(entries)}:\n\n{_markdown(rows)}"


def _times(rows: Sequence[Entry]) -> str:
    """Seconds and samples a second of each stage."""
    out = [["model", "seed", *(f"stage {stage}" for stage in "012"), "test"]]
    for entry in rows:
        cells = [_stage(entry["stages"].get(stage), stage) for stage in "012"]
        seconds = max(entry["evaluation"]["seconds"].values())
        out.append([entry["row"], str(entry["seed"]), *cells, f"{seconds:.0f} s"])
    return (
        "**Time**, start and compilation included; samples a second after the start, scenes in stage 0:\n\n"
        f"{_markdown(out)}"
    )


def _stage(stage: Entry | None, name: str) -> str:
    if stage is None:
        return "–"
    unit = "scenes" if name == "0" else "samples"
    rate = "" if stage["samples_per_second"] is None else f", {stage['samples_per_second']:,.0f} {unit}/s"
    return f"{stage['steps']:,} steps, {stage['seconds']:.0f} s{rate}"


def _notes(rows: Sequence[Entry]) -> list[str]:
    """What the numbers are, and what they were measured on."""
    machines = dict.fromkeys(
        f"{m['device']}, {m['cores']} cores, torch {m['torch']}, transformers {m['transformers']}, {m['date']}"
        for m in (entry["machine"] for entry in rows)
    )
    sizes = dict.fromkeys(
        f"{sum(entry['dataset']['counts']['scenes']['train'].values()):,} rooms"
        f" (fingerprint {entry['dataset']['fingerprint'][:8]})"
        for entry in rows
    )
    commands = dict.fromkeys(f"`python -m benchmarks.rooms_table {entry['command']}`" for entry in rows)
    limits = dict.fromkeys(f"{entry['evaluation']['limit']:,}" for entry in rows)
    return [
        "Answers count as right by exact match. Centres are medians over furniture; a prediction that is no such "
        "anchor is infinitely far. Flat are planes and boxes thinner than 0.10 m: doors, windows and pictures above "
        "all. Brackets hold 95 % intervals over questions, of one training run; of several seeds the mean stands, "
        "with the least and the greatest. Greedy decoding; actions constrained to the schema.",
        f"Trained on {'; '.join(sizes)}, tested on at most {' or '.join(limits)} questions and as many actions about "
        f"rooms of the same generator. {'; '.join(machines)}. {', '.join(commands)}.",
    ]


# -------------------------------------------------------------------------------------------------------------- numbers


def _title(entries: Sequence[Entry]) -> str:
    seeds = sorted({entry["seed"] for entry in entries})
    steps = dict.fromkeys(
        " + ".join(f"{entry['stages'][stage]['steps']:,}" for stage in "012" if stage in entry["stages"])
        for entry in entries
    )
    each = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    shared = {entry["encoder_seed"] for entry in entries} - {None}
    encoder = f", which share the stage 0 of seed {' or '.join(map(str, sorted(shared)))}" if shared else ""
    return f"{' or '.join(steps)} steps of the stages, {each}{encoder}"


def _question(found: Entry) -> Number:
    return {"value": found["exact_match"], "interval": found["interval"]}


def _of(found: Entry | None, metric: str) -> Number | None:
    return None if found is None else found.get(metric)


def _cell(numbers: Iterable[Number | None], digits: int) -> str:
    """A number with its interval, or the mean of several with their range; – where there is none."""
    known = [number for number in numbers if number is not None]
    if not known:
        return "–"
    values = [float("inf") if number["value"] is None else number["value"] for number in known]
    if len(known) > 1:
        return f"{_number(sum(values) / len(values), digits)} [{_range(min(values), max(values), digits)}]"
    interval = known[0]["interval"]
    if interval is None:
        return _number(values[0], digits)
    low, high = (float("inf") if end is None else end for end in interval)
    return f"{_number(values[0], digits)} ({_range(low, high, digits)})"


def _range(low: float, high: float, digits: int) -> str:
    return f"{_number(low, digits)} – {_number(high, digits)}"


def _number(value: float, digits: int) -> str:
    return "∞" if value == float("inf") else f"{value:.{digits}f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])
