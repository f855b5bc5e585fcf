"""The report: self-contained, complete, safe against what models write, drawn where things are, alive in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as evaluator
from evaluation import charts
from evaluation.charts import Group, Point, dot_plot
from evaluation.conditions import CONDITIONS
from evaluation.drawing import box_corners, paths_in_view, plan, room_from_above
from evaluation.report import CONDITION_TITLES
from tests.evaluating import save_checkpoint, true_answers, write_rows
from tests.frames import camera
from training.data import SceneDataset

HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror=alert(1)> & "quotes" \u2028'
K = np.array([[60.0, 0, 56], [0, 60, 56], [0, 0, 1]])
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
BROWSER_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
]


class Page(HTMLParser):
    """Tags with their attributes, and the data that the script reads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def report(rooms, tmp_path_factory) -> str:
    """Of answers of which some are wrong, one in a way meant to break the page."""
    folder = tmp_path_factory.mktemp("report")
    rows = true_answers(rooms)
    for index, row in enumerate(rows):
        if index % 3 == 0:
            row["prediction"] = HOSTILE if not row["prediction"].startswith("{") else row["prediction"][:50]
        elif row["prediction"].startswith("{"):
            row["prediction"] = re.sub(r'"label":"\w+', '"label":"<b>', row["prediction"])
    path = write_rows(folder / "answers.jsonl", rows)
    arguments = ["score", "--predictions", str(path), "--dataset", str(rooms), "--output", str(folder)]
    evaluator.main([*arguments, "--num-resamples", "50"])
    return (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(report):
    page = Page(report)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "poster", "action", "srcset"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert "@import" not in report
    assert "url(" not in report.split("</style>")[0]


def test_every_example_has_its_views_and_its_truth(report, rooms):
    data = Page(report).data
    assert len(data["examples"]) == data["total"] == len(true_answers(rooms))
    for example in data["examples"]:
        assert len(example["views"]) == 8
        assert all(data["images"][view["key"]].startswith("data:image/jpeg;base64,") for view in example["views"])
        assert example["verdict"] in ("right", "partly", "wrong")
        assert ("plan" in example) == (example["task"] == "rooms_actions")
    assert {example["verdict"] for example in data["examples"]} >= {"right", "wrong"}


def test_what_models_write_stays_text(report):
    assert HOSTILE not in report
    assert '<script>document.title="taken"' not in report
    assert "<b>" not in " ".join(each.get("plan", "") for each in Page(report).data["examples"])
    answers = [line[1] for each in Page(report).data["examples"] for line in each["lines"]]
    assert HOSTILE in answers


def test_few_examples_are_spread_and_counted(rooms, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", true_answers(rooms))
    arguments = ["score", "--predictions", str(path), "--dataset", str(rooms), "--output", str(tmp_path)]
    evaluator.main([*arguments, "--num-resamples", "0", "--gallery", "3"])
    data = Page((tmp_path / "report.html").read_text(encoding="utf-8")).data
    assert len(data["examples"]) == 6
    assert data["total"] > 6


def anchor(center, extent=(1.0, 0.6, 2.0), normal=(0.0, -1.0, 0.0)) -> dict:
    return {"label": "box", "center": list(center), "extent": list(extent), "normal": list(normal)}


def test_boxes_are_drawn_where_they_are():
    world_from_cam = camera([0, 0, 1], [0, 1, 0])
    (face, halo, edges) = paths_in_view([anchor([0, 3, 1])], "truth", world_from_cam, K, 0.5)
    assert (face[0], halo[0], edges[0]) == ("face truth", "halo", "truth")
    numbers = np.array([float(n) for n in re.findall(r"-?\d+\.\d", face[1])]).reshape(-1, 2)
    # The front, 1 m wide and 2 m high, stands 2.7 m ahead: 60 / 2.7 pixels a metre, halved.
    np.testing.assert_allclose(np.ptp(numbers, axis=0), np.array([1, 2]) * 60 / 2.7 / 2, atol=0.11)
    np.testing.assert_allclose(numbers.mean(axis=0), [28, 28], atol=0.06)
    assert edges[1].count("M") == 12


def test_what_is_behind_the_camera_is_not_drawn():
    world_from_cam = camera([0, 0, 1], [0, 1, 0])
    assert paths_in_view([anchor([0, -3, 1])], "truth", world_from_cam, K, 1.0) == []
    (face, _, edges) = paths_in_view([anchor([0, 0, 1], (2, 2, 2))], "truth", world_from_cam, K, 1.0)
    assert face[1] == "", "the front is behind"
    assert 0 < edges[1].count("M") < 12
    assert "nan" not in edges[1] + "inf" * ("inf" in edges[1])


def test_corners_span_the_box():
    corners = box_corners(anchor([1, 2, 3], (1.0, 0.6, 2.0), (-1.0, 0.0, 0.0)))
    np.testing.assert_allclose(corners.mean(axis=0), [1, 2, 3])
    np.testing.assert_allclose(np.ptp(corners, axis=0), [0.6, 1.0, 2.0])


def test_a_plan_shows_cameras_and_boxes_from_above(rooms):
    dataset = SceneDataset([rooms], "val", 4)
    example = dataset[dataset.fixed_draws(1)[0]]
    truth = anchor([*example.world_from_cam[0, :2, 3], 1.0])
    drawn = plan(example, [truth], [truth, anchor([500, 0, 0])], None)
    assert drawn.count('class="camera') == 4
    assert drawn.count('class="camera first"') == 1
    assert drawn.count('class="truth"') == 1
    assert drawn.count('class="predicted"') == 2
    x, y, width, height = map(float, re.search(r'viewBox="([^"]+)"', drawn)[1].split())
    assert width < 2000
    assert height < 2000, "a stray prediction does not shrink the room to a dot"
    eye = example.world_from_cam[0, :2, 3] * [100, -100]
    assert x < eye[0] < x + width
    assert y < eye[1] < y + height


def test_the_room_from_above_covers_what_the_cameras_saw(rooms):
    dataset = SceneDataset([rooms], "val", 8)
    uri, bounds = room_from_above(dataset[dataset.fixed_draws(1)[0]])
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    cells = (bounds[2] - bounds[0]) / picture.size[0], (bounds[3] - bounds[1]) / picture.size[1]
    assert cells[0] == pytest.approx(cells[1], rel=0.02)
    assert 0.02 < cells[0] < 0.1
    opaque = np.asarray(picture)[..., 3] > 0
    assert opaque.mean() > 0.3
    assert np.asarray(picture)[..., :3][opaque].max() > 0


def test_a_chart_tells_every_condition_apart():
    titles = list(CONDITION_TITLES)[:-1]
    assert set(titles) == set(CONDITIONS)
    chart = dot_plot([Group("what", 7, [Point(50)] * len(titles))], titles, "%", "label")
    style = (Path(charts.__file__).parent / "page.css").read_text(encoding="utf-8")
    assert len(set(charts.MARKS[1:])) == len(charts.MARKS) - 1
    for place in range(len(titles)):
        assert f"series s{place}" in chart and f".series.s{place} {{" in style


def test_charts_place_values_on_their_axis():
    chart = dot_plot([Group("what <is>", 7, [Point(50, 40, 60), None])], ["A", "B"], "%", "label", full=100)
    assert "what &lt;is&gt;" in chart
    assert "7 asked" in chart
    x = {name: float(re.search(rf'<text class="tick" x="([\d.]+)"[^>]*>{name}<', chart)[1]) for name in ("0%", "100")}
    point = float(re.search(r'<g class="series s0"><title>.*?<circle cx="([\d.]+)"', chart)[1])
    assert point == pytest.approx((x["0%"] + x["100"]) / 2, abs=0.2)


PROBE = """
<script>
const found = {};
const shown = () => document.querySelectorAll(".card").length;
const set = (selector, value, event) => {
  const node = document.querySelector(selector);
  node.value = value;
  node.dispatchEvent(new Event(event));
};
window.addEventListener("load", () => {
  found.first = shown();
  found.images = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
  found.wider = document.documentElement.scrollWidth > window.innerWidth;
  document.querySelector(".more").click();
  found.all = shown();
  document.querySelector('[data-verdict="wrong"]').click();
  found.wrong = document.querySelectorAll(".card b.wrong").length === shown() && shown();
  document.querySelector('[data-verdict=""]').click();
  set("select[name=task]", "rooms_actions", "change");
  found.plans = document.querySelectorAll(".card .plan image[href^='data:']").length;
  found.boxes = document.querySelectorAll(".card .boxes path.truth").length > 0;
  set("select[name=task]", "", "change");
  set("input[type=search]", "QUOTES taken", "input");
  found.searched = shown();
  set("input[type=search]", "no such words", "input");
  found.nothing = !document.querySelector(".none").hidden && shown() === 0;
  set("input[type=search]", "", "input");
  document.querySelector(".view").click();
  found.enlarged = document.querySelector("dialog").open && document.querySelector("dialog img").naturalWidth > 0;
  found.title = document.title;
  const line = document.createElement("pre");
  line.id = "found";
  line.textContent = JSON.stringify(found);
  document.body.append(line);
});
</script>
"""


def browse(page: str, folder: Path, *options: str) -> tuple[dict, str]:
    """What the probe found, and what the console said."""
    path = folder / "probed.html"
    path.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [
        BROWSER,
        *BROWSER_OPTIONS,
        *options,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        path.as_uri(),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="found">(.*?)</pre>', process.stdout)
    assert found, process.stdout[-500:] + process.stderr[-500:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), "\n".join(console)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: install Debian's chromium to see the report work")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_works_in_a_browser(width, report, tmp_path):
    data = Page(report).data
    wrong = sum(example["verdict"] == "wrong" for example in data["examples"])
    actions = sum(example["task"] == "rooms_actions" for example in data["examples"])
    hostile = sum(HOSTILE in [line[1] for line in example["lines"]] for example in data["examples"])
    found, console = browse(report, tmp_path, f"--window-size={width},900")
    assert console == ""
    assert found == {
        "first": 24,
        "images": True,
        "wider": False,
        "all": min(48, len(data["examples"])),
        "wrong": min(24, wrong),
        "plans": actions,
        "boxes": True,
        "searched": hostile,
        "nothing": True,
        "enlarged": True,
        "title": "answers: evaluation",
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def test_controls_stand_beside_the_answers(checkpoint, rooms, tmp_path):
    options = ["--max-new-tokens", "3", "--num-views", "2", "--limit", "3", "--num-resamples", "20"]
    arguments = ["--model", checkpoint, "--dataset", str(rooms), "--output", str(tmp_path), *options]
    evaluator.main([*arguments, "--controls", "blind,shuffled_images"])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    example = Page(text).data["examples"][0]
    assert [line[0] for line in example["lines"] if line[0] not in ("Wanted", "Fault")] == [
        "Answer",
        "Blind",
        "Another room’s images",
    ]
    assert "p = 1.000" in text
    assert "&lt;|image_pad|&gt;" in text, "the prompt is printed"
    evaluator.main([*arguments, "--blind", "--overwrite"])
    blind = Page((tmp_path / "report.html").read_text(encoding="utf-8")).data["examples"]
    assert all(len(each["views"]) == 2 for each in blind), "a reader sees what the model did not"
