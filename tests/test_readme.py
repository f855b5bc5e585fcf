"""The README's first examples run as they stand, on the example room that comes with the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.evaluating import save_checkpoint
from tests.training_runs import run


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """A folder that looks like the repository after `make demo`."""
    folder = tmp_path_factory.mktemp("newcomer")
    save_checkpoint(folder / "outputs" / "demo")
    for name in ("examples", "models"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def blocks(section: str, language: str) -> list[str]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_examples_answer_and_place_an_anchor(newcomer):
    script = newcomer / "ask.py"
    on_a_line = "import builtins\nprint = lambda found: builtins.print(ascii(found))"
    script.write_text("\n".join([on_a_line, *blocks("Ask", "python")]), encoding="utf-8")
    command = [sys.executable, str(script)]
    result = run(command, PYTHONPATH=str(REPOSITORY), cwd=newcomer)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second, action = map(ast.literal_eval, result.stdout.strip().splitlines())
    assert action["error"] is None and action["action"]["scene"] == "my-room"
    assert (first, second) == ("yellow", "4")

    shell = [line for line in blocks("Ask", "bash")[0].replace("\\\n", "").splitlines() if line]
    assert len(shell) == 2
    asked = [
        subprocess.run(
            line.replace("python eval.py", f"{sys.executable} {REPOSITORY / 'eval.py'}"),
            shell=True, cwd=newcomer, capture_output=True, text=True, check=False, timeout=300,
        )
        for line in shell
    ]  # fmt: skip
    assert [each.returncode for each in asked] == [0, 0], asked[0].stderr[-2000:] + asked[1].stderr[-2000:]
    assert asked[0].stdout.strip() == first.strip()
    assert '"center"' in asked[1].stdout
