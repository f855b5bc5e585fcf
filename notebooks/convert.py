"""Makes the notebooks from their readable sources: `# %%` begins a cell of code, `# %% [markdown]` one of words.

python notebooks/convert.py
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = ("quickstart", "own_scan")
MARKER = re.compile(r"^# %%( \[markdown\])?$", flags=re.MULTILINE)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook_of(source: str) -> NotebookNode:
    """The notebook of a source, without outputs; the same source gives the same notebook."""
    _, *parts = MARKER.split(source)
    cells = []
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2])):
        text = text.strip("\n")
        if kind:
            cell = new_markdown_cell(re.sub(r"^# ?", "", text, flags=re.MULTILINE))
        else:
            cell = new_code_cell(text)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    return new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})


def main() -> None:
    """Writes every notebook beside its source."""
    for name in NOTEBOOKS:
        notebook = notebook_of((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        nbformat.validate(notebook)
        (FOLDER / f"{name}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
