"""One self-contained HTML page: style and script inside, pictures as data URIs, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M2 14V6l6-4 6 4v8z'"
    " fill='%231d4e6b'/%3E%3C/svg%3E"
)


def page(title: str, body: str, data: dict[str, Any] | None) -> str:
    """The whole document; `data` is what the gallery's script draws: {examples, images, total}."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    holder = "" if data is None else f'<script type="application/json" id="data">{_embedded(data)}</script>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="{ICON}">
<style>
{style}</style>
</head>
<body>
{body}
<dialog aria-label="One view, enlarged"></dialog>
{holder}
<script>
{script}</script>
</body>
</html>
"""


def section(title: str, note: str, body: str, css_class: str = "") -> str:
    """A section with its title and a note at the side. `note` and `body` are HTML."""
    side = f'<div class="side"><h2>{escape(title)}</h2>{f"<p>{note}</p>" if note else ""}</div>'
    return f'<section class="{css_class}">{side}<div class="body">{body}</div></section>'


def heading(eyebrow: str, title: str, lede: str, facts: Sequence[tuple[str, str]]) -> str:
    """The top of the page; texts are escaped here."""
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        f'<header><p class="eyebrow">{escape(eyebrow)}</p><h1>{escape(title)}</h1>'
        f'<p class="lede">{escape(lede)}</p><dl class="facts">{pairs}</dl></header>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", marked: int | None = None) -> str:
    """A table; cells are HTML, a cell that starts with a tag `<td` is taken as it is. `marked`: a row set in bold."""
    top = "".join(cell if cell.startswith("<th") else f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for index, (name, *cells) in enumerate(rows):
        body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        css_class = ' class="ours"' if index == marked else ""
        lines.append(f'<tr{css_class}><th scope="row">{name}</th>{body}</tr>')
    below = f'<p class="caption">{caption}</p>' if caption else ""
    grid = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div><div class="scroll">{grid}</div>{below}</div>'


def gallery(tasks: Sequence[str], types: Sequence[str], verdicts: Sequence[tuple[str, str]], note: str) -> str:
    """The gallery's filters and its empty shelf, which the script fills. `verdicts`: (value, label)."""
    buttons = "".join(
        f'<button type="button" data-verdict="{value}" aria-pressed="false">{escape(label)} <span></span></button>'
        for value, label in (("", "All"), *verdicts)
    )
    selects = _select("task", "All tasks", tasks) + _select("type", "All types", types)
    filters = (
        f'<div class="filters" role="search"><div class="group">{buttons}</div>{selects}'
        '<input type="search" placeholder="Search questions and answers" aria-label="Search questions and answers">'
        "<output></output></div>"
    )
    shelf = '<div class="cards"></div><p class="none" hidden>Nothing matches.</p>'
    more = '<button type="button" class="more" hidden>Show more</button>'
    noscript = "<noscript><p>The gallery needs JavaScript; all answers are in predictions.jsonl.</p></noscript>"
    return section("Examples", note, filters + shelf + more + noscript, "gallery")


def _select(name: str, everything: str, values: Sequence[str]) -> str:
    if len(values) < 2:
        return ""
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    return f'<select name="{name}" aria-label="{everything}"><option value="">{everything}</option>{options}</select>'


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
