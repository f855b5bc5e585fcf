"""The page to try the model: what it draws, what it takes, and, in a real browser, what a visitor sees."""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import trimesh
from PIL import Image, PngImagePlugin

from evaluation.drawing import box_corners as reference_corners
from hub_upload.record import read_staged
from hub_upload.stage_space import SpaceSettings, stage_space
from hub_upload.verify import NotPublishableError, static_faults, verify
from tests.hub import ANSWER, level_cameras, make_talking_checkpoint, record_again, run_module
from tests.hub_server import TOKEN, running_hub

SPACE = Path(__file__).resolve().parents[1] / "hub_upload" / "space"
ANCHOR = {"action": "place_anchor", "label": "chair", "center": [0.3, 4.0, 1.2]}
ANCHOR |= {"extent": [0.6, 0.4, 0.9], "normal": [0.6, -0.8, 0.0]}
RED = (228, 87, 46)


def load(name: str) -> ModuleType:
    """A module of the Space, which lies beside its siblings in a flat folder."""
    spec = importlib.util.spec_from_file_location(f"space_{name}", SPACE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


drawing, room = load("drawing"), load("room")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_talking_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def guide(model) -> Iterator[ModuleType]:
    """The app's side of the model, without the page."""
    sys.modules["room"] = room  # by this name it lies beside guide.py
    module = load("guide")
    del sys.modules["room"]
    guide = module.Guide(str(model))
    yield guide
    guide.pool.shutdown()


@pytest.fixture(scope="module")
def visitors_module() -> ModuleType:
    sys.modules["room"] = room
    module = load("visitors")
    del sys.modules["room"]
    return module


def last(replies: Iterator[Any]) -> Any:
    """The reply that holds everything."""
    return list(replies)[-1]


def level_camera() -> tuple[np.ndarray, np.ndarray]:
    cameras = level_cameras(1)
    return cameras["intrinsics"][0][0], cameras["world_from_cam"][0][0]


class TestDrawing:
    def test_boxes_are_those_of_the_project(self):
        assert np.allclose(drawing.box_corners(ANCHOR), reference_corners(ANCHOR))

    def test_the_box_is_drawn_where_it_stands(self):
        intrinsics, world_from_cam = level_camera()
        image = Image.new("RGB", (80, 60), "black")
        drawn = np.asarray(drawing.draw_anchors(image, [ANCHOR], intrinsics, world_from_cam))
        (rows, columns) = np.nonzero((drawn == RED).all(axis=-1))
        corners = drawing.box_corners(ANCHOR) - world_from_cam[:3, 3]  # the camera looks along +Y, z up
        x, y = 40 + 60 * corners[:, 0] / corners[:, 1], 30 - 60 * corners[:, 2] / corners[:, 1]
        assert abs(columns.min() - x.min()) < 3
        assert abs(columns.max() - x.max()) < 3
        assert abs(rows.max() - y.max()) < 3
        assert not np.asarray(image).any()  # the photograph itself stays as it was

    @pytest.mark.parametrize("center", [[0.0, -3.0, 1.0], [0.0, 0.0, 1.5], [90.0, 1.0, 1.0]])
    def test_boxes_behind_around_and_beside_the_camera(self, center):
        intrinsics, world_from_cam = level_camera()
        anchor = {**ANCHOR, "center": center}
        drawn = drawing.draw_anchors(Image.new("RGB", (80, 60)), [anchor], intrinsics, world_from_cam)
        assert np.asarray(drawn).any() == (center == [0.0, 0.0, 1.5])

    def test_the_scene_holds_cameras_surface_and_boxes_y_up(self, tmp_path):
        intrinsics, world_from_cam = (each[None] for each in level_camera())
        depth = np.full((60, 80), 3.0, dtype=np.float32)
        depth[:, :40] = 0
        image = Image.new("RGB", (80, 60), "green")
        actions = {"action": "place_anchors", "anchors": [ANCHOR, {**ANCHOR, "label": "door", "extent": [0.9, 0, 2.0]}]}
        anchors = drawing.anchors_of(actions)
        drawing.write_glb(tmp_path / "a.glb", anchors, [image], intrinsics, world_from_cam, [depth])
        scene = trimesh.load(tmp_path / "a.glb")
        names = set(scene.graph.nodes_geometry)
        assert names == {"camera 0", "view 0", "chair 0", "door 1"}
        parts = {name: scene.geometry[scene.graph[name][1]].copy() for name in names}
        for name, part in parts.items():
            part.apply_transform(scene.graph[name][0])
        assert np.allclose(parts["chair 0"].bounds.mean(axis=0), [0.3, 1.2, -4.0], atol=1e-3)
        low, high = parts["view 0"].bounds
        assert np.allclose([low[2], high[2]], -3.0, atol=1e-4)  # the wall, 3 m ahead
        assert low[0] > -0.1  # no surface where there is no depth
        assert parts["view 0"].face_normals[:, 2].min() > 0.99  # it faces the camera alone
        drawing.write_glb(tmp_path / "b.glb", [], [image], intrinsics, world_from_cam, [np.zeros_like(depth)])
        assert set(trimesh.load(tmp_path / "b.glb").graph.nodes_geometry) == {"camera 0"}


def write_video(path: Path, seconds: float, size: tuple[int, int] = (64, 48)) -> Path:
    with av.open(str(path), "w", options={"live": "1"} if path.suffix == ".mkv" else {}) as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(int(seconds * 4)):
            shade = np.full((size[1], size[0], 3), index * 255 // int(seconds * 4), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_photograph(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, "white").save(path)
    return path


def write_large(path: Path) -> Path:
    """A file just above the limit, and without content."""
    with path.open("wb") as file:
        file.truncate(51 * 2**20)
    return path


class TestUploads:
    def test_photographs_are_turned_upright_and_made_smaller(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (3000, 1000)).save(tmp_path / "a.jpg", exif=exif)
        shown = room.read_upload([tmp_path / "a.jpg"])
        assert (shown.views[0].size, shown.has_cameras) == ((341, 1024), False)

    def test_of_many_photographs_some_are_shown(self, tmp_path):
        paths = [write_photograph(tmp_path / f"{index}.png", (20 + index, 20)) for index in range(16)]
        assert [view.size[0] for view in room.read_upload(paths).views] == list(range(20, 36, 2))

    def test_a_video_becomes_frames_spread_over_it(self, tmp_path):
        shown = room.read_upload([write_video(tmp_path / "a.mp4", seconds=8)])
        shades = [np.asarray(view).mean() for view in shown.views]
        assert len(shades) == 8
        assert shades == sorted(shades)
        assert shades[0] < 10
        assert shades[-1] > 200

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda f: [], "Nothing was uploaded"),
            (lambda f: [write_photograph(f / f"{i}.png") for i in range(17)], "17 photographs are too many: 16"),
            (lambda f: [write_photograph(f / "a.png", (9000, 6000))], "9000 x 6000 pixels: 50 million at most"),
            (lambda f: [write_video(f / "a.mp4", 62, (16, 16))], "lasts 62 s: 60 s at most"),
            (lambda f: [write_video(f / "a.mp4", 1), write_photograph(f / "b.png")], "or one video, not both"),
            (lambda f: [(f / "a.jpg").write_bytes(b"no") and f / "a.jpg"], "a.jpg cannot be read as a photograph"),
            (lambda f: [(f / "a.mp4").write_bytes(b"no") and f / "a.mp4"], "a.mp4 cannot be read as a video"),
            (lambda f: [(f / "a.gif").write_bytes(b"no") and f / "a.gif"], "a.gif is no photograph"),
        ],
    )
    def test_what_is_refused_is_said_in_words(self, make, words, tmp_path):
        with pytest.raises(room.UploadError, match=words):
            room.read_upload(make(tmp_path))

    def test_files_that_are_too_large(self, tmp_path):
        with pytest.raises(room.UploadError, match="larger than 50 MB"):
            room.read_upload([write_large(tmp_path / "a.png")])

    def test_a_file_of_another_kind_than_its_name_says(self, tmp_path):
        """A list of files would have the reader open others; further formats of images run further readers."""
        write_video(tmp_path / "theirs.mp4", 2)
        (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile theirs.mp4\n")
        with pytest.raises(room.UploadError, match=r"list\.mp4 cannot be read as a video"):
            room.read_upload([tmp_path / "list.mp4"])
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", format="TIFF")
        with pytest.raises(room.UploadError, match=r"a\.jpg cannot be read as a photograph"):
            room.read_upload([tmp_path / "a.jpg"])

    def test_a_photograph_with_too_long_a_text(self, tmp_path):
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "x" * 2**21, zip=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        with pytest.raises(room.UploadError, match=r"a\.png cannot be read as a photograph"):
            room.read_upload([tmp_path / "a.png"])

    def test_a_video_that_does_not_tell_its_length(self, tmp_path):
        """As browsers record them."""
        shades = [np.asarray(view).mean() for view in room.read_upload([write_video(tmp_path / "a.mkv", 8)]).views]
        assert (len(shades), shades[0] < 10, shades[-1] > 200) == (8, True, True)
        with pytest.raises(room.UploadError, match="lasts 62 s: 60 s at most"):
            room.read_upload([write_video(tmp_path / "b.mkv", 62, (16, 16))])

    @pytest.mark.parametrize("name", ["../outside", "/outside", "", "study/../study"])
    def test_only_examples_that_come_along_are_shown(self, name, tmp_path, monkeypatch):
        """The name comes from the visitor, whatever the buttons say."""
        for folder in ("outside", "examples/study"):
            shutil.copytree(SPACE / "examples" / "study", tmp_path / folder)
        monkeypatch.setattr(room, "EXAMPLES", tmp_path / "examples")
        name = str(tmp_path / "outside") if name.startswith("/") else name
        with pytest.raises(room.UploadError, match="no example room of this name"):
            room.read_example(name)
        assert room.read_example("study").has_cameras

    def test_the_examples_have_cameras_that_fit_their_depth(self):
        assert len(room.example_names()) == 3
        for name in room.example_names():
            shown = room.read_example(name)
            assert shown.has_cameras
            assert len(shown.views) == len(shown.depth) == len(shown.intrinsics) == len(shown.world_from_cam)
            assert 0.3 < np.median(np.concatenate([depth.ravel() for depth in shown.depth])) < 6
            assert np.allclose([np.linalg.det(matrix[:3, :3]) for matrix in shown.world_from_cam], 1, atol=1e-4)


class TestVisitors:
    @pytest.fixture
    def visitors(self, visitors_module, tmp_path, monkeypatch):
        monkeypatch.setattr(visitors_module.tempfile, "tempdir", str(tmp_path))
        made = visitors_module.Visitors()
        yield made
        made.close()
        assert not any(tmp_path.iterdir())

    def test_files_go_with_the_room_that_they_show(self, visitors):
        first = visitors.show("a", room.read_example("study"))
        other = visitors.show("b", room.read_example("study"))
        assert [Image.open(path).size for path in first.write_views(first.room.views)] == [(336, 336)] * 4
        second = visitors.show("a", room.read_example("kitchen"))
        assert not first.folder.exists()
        visitors.leave("a")
        visitors.leave("a")
        assert not second.folder.exists()
        assert list(visitors.rooms.iterdir()) == [other.folder]

    def test_what_is_left_behind_is_swept_up(self, visitors):
        """A page that stays open, and an upload that was broken off."""
        session = visitors.show("a", room.read_example("study"))
        (visitors.uploads / "x").mkdir()
        (visitors.uploads / "x" / "half").write_bytes(b"half a photograph")
        visitors.sweep()
        assert session.folder.exists()
        assert (visitors.uploads / "x" / "half").exists()
        visitors.sweep(age_s=0)
        assert not visitors.sessions
        assert not session.folder.exists()
        assert not (visitors.uploads / "x" / "half").exists()


@pytest.mark.xdist_group("space")
class TestGuide:
    """The small model has 512 positions, fewer than the longest list of anchors takes."""

    def test_answers_and_places_anchors(self, guide):
        study = room.read_example("study")
        reply = last(guide.ask(study, "What is next to the desk?", wants_action=False))
        assert (reply.text, reply.action, reply.error) == (ANSWER, None, None)
        assert list(reply.seconds) == ["looking", "reading the question", "answering"]
        reply = last(guide.ask(study, "Place an anchor on the chair.", wants_action=True))
        assert (reply.action["action"], reply.action["label"], reply.action["scene"]) == (
            "place_anchor",
            "chair",
            "study",
        )
        assert reply.error is None

    def test_a_room_is_looked_at_once_and_forgotten_with_its_visitor(self, guide):
        guide.scenes.clear()
        shown = room.read_example("kitchen")
        for question in ("What is next to the desk?", "What is next to the bed?"):
            last(guide.ask(shown, question, wants_action=False))
        assert list(guide.scenes) == [shown]
        del shown
        gc.collect()
        assert not guide.scenes

    def test_metres_are_never_invented(self, guide, tmp_path):
        shown = room.read_upload([write_photograph(tmp_path / "a.png")])
        reply = last(guide.ask(shown, "Place an anchor on the chair.", wants_action=True))
        assert (reply.text, reply.action) == ("", None)
        assert "cannot be known from photographs alone" in reply.error
        assert last(guide.ask(shown, "What is next to the desk?", wants_action=False)).text == ANSWER

    @pytest.mark.parametrize(
        ("question", "words"),
        [
            ("x" * 401, "401 characters: 400 at most"),
            ("<|im_start|>", "cannot be asked"),
            ("床" * 400, r"takes \d+ tokens, more than the model reads"),
        ],
    )
    def test_what_cannot_be_asked(self, guide, question, words):
        with pytest.raises(ValueError, match=words):
            last(guide.ask(room.read_example("study"), question, wants_action=False))


class TestPublishing:
    @pytest.fixture
    def staged(self, tmp_path) -> Path:
        stage_space(SpaceSettings("someone/rooms", tmp_path / "space", "someone/page"))
        return tmp_path / "space"

    def test_what_is_staged(self, staged):
        names = set(read_staged(staged).files)
        code = {f"{module}.py" for module in ("app", "guide", "room", "visitors", "drawing")}
        assert code | {"requirements.txt", "model.txt", "README.md"} < names
        assert len([name for name in names if name.endswith(".jpg")]) == 12
        assert (staged / "model.txt").read_text() == "someone/rooms\n"
        assert "models:\n- someone/rooms\n" in (staged / "README.md").read_text()
        assert static_faults(staged, read_staged(staged)) == []

    def test_a_space_serves_a_model_of_the_hub(self, tmp_path):
        for name in ("outputs", str(tmp_path)):
            with pytest.raises(ValueError, match="needs the Hub id"):
                stage_space(SpaceSettings(name, tmp_path / "out", "someone/page"))

    @pytest.mark.parametrize(
        ("name", "text", "wanted"),
        [
            ("README.md", "# A page\n", "no metadata"),
            ("cat.jpeg", "x", "cat.jpeg has no place"),
            ("app.py", "TOKEN = '" + "hf_" + "a" * 34 + "'", "app.py holds a Hugging Face token"),
        ],
    )
    def test_faults(self, name, text, wanted, staged):
        (staged / name).write_text(text)
        with pytest.raises(NotPublishableError, match=wanted):
            verify(staged)


# ------------------------------------------------------------------------------------------------------------- browser

NOTE_QUEUE = """
window.queued = [];
const note = () => window.queued.push(...(document.body.innerText.match(/queue: \\d+\\/\\d+/g) || []));
addEventListener("DOMContentLoaded", () =>
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true}));
"""


@pytest.fixture(scope="module")
def packages() -> Path:
    """Gradio as the Space pins it, and a driver of browsers, fetched once by pip."""
    folder = SPACE.parents[1] / "build" / "space-packages"
    wanted = [
        line for line in (SPACE / "requirements.txt").read_text().split() if line.startswith(("gradio", "pillow"))
    ]
    if not (folder / "complete").is_file():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *wanted, "playwright>=1.50"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"gradio cannot be installed: {result.stderr.strip().splitlines()[-1]}")
        (folder / "complete").touch()
    return folder


@pytest.fixture(scope="module")
def served(packages, model, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Address of the running app, and the folder of all its temporary files."""
    folder = tmp_path_factory.mktemp("space")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MODEL": str(model), "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    env |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    env |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    with (folder / "app.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=SPACE, env=env, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}/"
        try:
            for _ in range(240):
                if _answers(url):
                    break
                assert process.poll() is None, (folder / "app.log").read_text()
                time.sleep(0.5)
            yield url, folder
        finally:
            process.terminate()
            process.wait(20)
    assert not list(folder.glob("visitors-*"))  # nothing of theirs outlives the page, however it is stopped


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser(packages):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    sys.path.append(str(packages))  # last: only what is not installed comes from there
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
        )
        yield running
        running.close()
    sys.path.remove(str(packages))


@pytest.fixture
def page(browser, served):
    opened = browser.new_page(viewport={"width": 1280, "height": 1150})
    opened.set_default_timeout(60_000)
    opened.goto(served[0])
    yield opened
    opened.close()


def ask(page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")


@pytest.mark.slow
@pytest.mark.xdist_group("space")
def test_staged_verified_and_pushed(packages, tmp_path):
    stage = str(tmp_path / "space")
    with running_hub() as hub:
        places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        for words in (
            ["stage", "--type", "space", "--model", "someone/rooms", "--output", stage, "--repo-id", "someone/page"],
            ["verify", stage, "--packages", str(packages)],
            ["push", stage, "--repo-id", "someone/page"],
        ):
            result = run_module("-m", f"hub_upload.{words[0]}", *words[1:], **places)
            assert result.returncode == 0, result.stderr
        assert hub.files("someone/page", kind="space")["app.py"] == (SPACE / "app.py").read_bytes()
    (tmp_path / "space" / "guide.py").write_text("import gone\n")
    record_again(tmp_path / "space")
    with pytest.raises(NotPublishableError, match="No module named 'gone'"):
        verify(tmp_path / "space", packages=packages)


def shown_pictures(page) -> list[np.ndarray]:
    """What the gallery shows, [H, W, 3] each."""
    sources = [image.get_attribute("src") for image in page.locator("#views .grid-wrap img").all()]
    answers = [page.request.get(source) for source in sources]
    return [np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")).astype(int) for answer in answers]


def nodes_of(answer: Any) -> set[str]:
    """Names of the parts of a 3D scene that the browser was sent."""
    return set(trimesh.load(io.BytesIO(answer.body()), file_type="glb").graph.nodes_geometry)


def files_below(folder: Path) -> list[Path]:
    """Those that hold anything; the library leaves an empty one for each upload, which the sweep removes."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and path.suffix != ".log"]


def wait_until(is_so: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "it has not come so"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.xdist_group("space")
class TestInABrowser:
    def test_a_question_is_answered_and_an_anchor_placed(self, page):
        files = []
        page.on("response", lambda answer: files.append(answer) if ".glb" in answer.url else None)
        page.get_by_role("button", name="Example: study").click()
        page.get_by_text("4 views, cameras known.").wait_for()
        ask(page, "What is next to the desk?")
        page.locator("#chat").get_by_text(ANSWER).wait_for()
        page.locator("#times").get_by_text("answering").wait_for()
        without = shown_pictures(page)
        assert len(without) == 4
        page.get_by_label("Place an anchor").check()
        ask(page, "Place an anchor on the chair.")
        page.get_by_text("Placed 1 anchor: chair.").wait_for()
        page.locator("#action").get_by_text("place_anchor").wait_for()
        action = json.loads(page.locator("#action .cm-content").inner_text())
        assert (action["action"], action["label"], action["scene"]) == ("place_anchor", "chair", "study")
        assert len(action["center"]) == 3
        for step in ("looking", "reading the question", "answering"):
            assert step in page.locator("#times").inner_text()
        reddest = [(np.abs(picture - RED).sum(-1) < 40).sum() for picture in shown_pictures(page)]
        before = [(np.abs(picture - RED).sum(-1) < 40).sum() for picture in without]
        assert max(after - was for after, was in zip(reddest, before, strict=True)) > 200  # the box is drawn in
        assert "chair 0" not in nodes_of(files[0])
        wait_until(lambda: "chair 0" in nodes_of(files[-1]))  # the viewer has fetched the room with its anchor
        picture = np.asarray(Image.open(io.BytesIO(page.locator("#model canvas").screenshot())).convert("RGB"))
        assert picture.std() > 10  # the viewer draws something
        if "SCREENSHOT" in os.environ:  # SCREENSHOT=docs/figures/space.jpg makes the README's again
            page.mouse.move(0, 0)
            page.screenshot(path=os.environ["SCREENSHOT"], type="jpeg", quality=80, full_page=True)

    def test_without_cameras_there_are_no_metres(self, page, served, tmp_path):
        paths = [str(write_photograph(tmp_path / f"{index}.png")) for index in range(3)]
        page.locator("input[type=file]").first.set_input_files(paths)
        page.get_by_text("3 views, cameras unknown.").wait_for()
        assert not [path for path in served[1].rglob("*.png") if path.name in ("0.png", "1.png", "2.png")]
        ask(page, "What is next to the desk?")
        page.locator("#chat").get_by_text(ANSWER).wait_for()
        page.get_by_label("Place an anchor").check()
        ask(page, "Place an anchor on the chair.")
        page.get_by_text("no place in metres to give").wait_for()
        assert "{" not in page.locator("#action").inner_text()

    def test_a_video(self, page, tmp_path):
        page.locator("input[type=file]").first.set_input_files(str(write_video(tmp_path / "a.mp4", 4)))
        page.get_by_text("8 views, cameras unknown.").wait_for()

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda f: [write_photograph(f / "a.png", (9000, 6000))], "50 million at most"),
            (lambda f: [write_photograph(f / f"{i}.png") for i in range(17)], "17 photographs are too many"),
            (lambda f: [write_large(f / "a.png")], "50"),
            (lambda f: [write_video(f / "a.mp4", 62, (16, 16))], "60 s at most"),
        ],
        ids=["pixels", "number", "bytes", "seconds"],
    )
    def test_uploads_that_are_too_large(self, make, words, page, served, tmp_path):
        page.locator("input[type=file]").first.set_input_files([str(path) for path in make(tmp_path)])
        page.locator(".toast-wrap").get_by_text(words).first.wait_for()
        wait_until(lambda: not [path for path in served[1].rglob("*") if path.suffix in (".png", ".mp4")])
        page.get_by_role("button", name="Example: kitchen").click()
        page.get_by_text("4 views, cameras known.").wait_for()

    def test_what_cannot_be_asked_is_said(self, page):
        ask(page, "What is next to the desk?")
        page.get_by_text("Upload photographs, or choose an example room.").nth(1).wait_for()
        page.get_by_role("button", name="Example: kitchen").click()
        page.get_by_text("4 views, cameras known.").wait_for()
        ask(page, "What is <|im_start|> next to the desk?")
        page.get_by_text("That cannot be asked").wait_for()

    def test_a_visitor_who_leaves_takes_everything_along(self, browser, served, tmp_path):
        page = browser.new_page()
        page.goto(served[0])
        others = set(files_below(served[1]))
        page.locator("input[type=file]").first.set_input_files(str(write_photograph(tmp_path / "mine.png", (640, 480))))
        page.get_by_text("1 view, cameras unknown.").wait_for()
        page.get_by_role("button", name="Example: study").click()
        page.get_by_text("4 views, cameras known.").wait_for()
        page.locator("#model canvas").wait_for()
        mine = {path.suffix for path in files_below(served[1]) if path not in others}
        assert mine == {".jpg", ".glb"}
        page.close()
        wait_until(lambda: set(files_below(served[1])) <= others)

    def test_several_visitors_wait_in_a_queue_and_see_their_own_rooms(self, browser, served):
        names = ("bedroom", "kitchen", "study")
        pages = [browser.new_page() for _ in names]
        for opened, name in zip(pages, names, strict=True):
            opened.add_init_script(NOTE_QUEUE)
            opened.goto(served[0])
            opened.get_by_role("button", name=f"Example: {name}").click()
            opened.get_by_text("4 views, cameras known.").wait_for()
            opened.get_by_label("Place an anchor").check()
            opened.locator("#question textarea").fill("Place an anchor on the chair.")
        for opened in pages:
            opened.locator("#question textarea").press("Enter")
        for opened, name in zip(pages, names, strict=True):
            opened.get_by_text("Placed 1 anchor: chair.").wait_for()
            opened.locator("#action").get_by_text(f'"{name}"').wait_for()
            assert f'"scene": "{name}"' in opened.locator("#action .cm-content").inner_text()
        waited = [opened.evaluate("window.queued") for opened in pages]
        for opened in pages:
            opened.close()
        assert any(waited), "nobody was told to wait"
