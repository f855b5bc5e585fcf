"""One question about a folder of photographs, from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import eval as evaluator
from evaluation import question
from evaluation.drawing import box_corners
from processing.geometry_vggt_qwen3 import invert_rigid, ref_from_world, transform_points
from tests.evaluating import save_checkpoint
from tests.test_photos import photo, rgbd, y_down

ANCHOR = (
    '{"action":"place_anchor","label":"table","center":[0.50,2.00,-0.70],"extent":[1.20,0.80,0.75],'
    '"normal":[0.00,-1.00,0.00]}'
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def saying(monkeypatch):
    """Makes the model say a text, and keeps what it was given."""
    given = {}

    def fix(text: str) -> dict:
        monkeypatch.setattr(question, "generate", lambda model, inputs, *_: given.update(inputs) or ([text], [False]))
        return given

    return fix


def test_an_answer_is_printed(checkpoint, tmp_path, capsys):
    for name in ("a", "b", "c"):
        photo(tmp_path / f"{name}.jpg")
    arguments = ["--model", checkpoint, "--images", str(tmp_path), "--question", "What is there?"]
    reply = evaluator.main([*arguments, "--max-new-tokens", "5"])
    out, err = capsys.readouterr()
    assert out == f"{reply.text}\n"
    assert reply.text
    assert "the token limit stopped the answer" in err
    situated = evaluator.main([*arguments, "--max-new-tokens", "5", "--situation", "I am standing by the door."])
    assert situated.text != reply.text


def test_an_action_is_printed_in_metres_of_the_world(checkpoint, tmp_path, capsys, saying):
    folder = rgbd(tmp_path / "scan", y_down())
    given = saying(ANCHOR)
    arguments = [
        "--model",
        checkpoint,
        "--images",
        str(folder),
        "--question",
        "Place an anchor on the table.",
        "--action",
    ]
    reply = evaluator.main([*arguments, "--gravity", "-0.0,1,0"])
    assert bool(given["geometry_mask"][0])
    assert bool(given["patch_points_mask"].any())
    world_from_ref = invert_rigid(ref_from_world(reply.scene.world_from_cam[0]))
    out, err = capsys.readouterr()
    action = json.loads(out)
    np.testing.assert_allclose(action["center"], transform_points(world_from_ref, [0.5, 2.0, -0.7]), atol=1e-5)
    assert "Z points up" in err


def test_a_picture_shows_where_the_anchor_is(checkpoint, tmp_path, capsys, saying):
    saying(ANCHOR)
    folder = rgbd(tmp_path / "scan", y_down())
    words = ["--model", checkpoint, "--images", str(folder), "--question", "Place an anchor.", "--action"]
    words += ["--gravity", "0,1,0"]
    reply = evaluator.main([*words, "--picture", str(tmp_path / "new" / "placed.png")])
    drawn = np.asarray(Image.open(tmp_path / "new" / "placed.png").convert("RGB")).astype(int)
    saying("nothing to place")
    evaluator.main([*words, "--picture", str(tmp_path / "empty.png")])
    changed = np.abs(drawn - np.asarray(Image.open(tmp_path / "empty.png").convert("RGB"))).sum(-1) > 60
    tile = 240 / max(reply.scene.images[0].size)
    view = np.nonzero(changed[:240, :240])
    assert len(view[0]) > 20, "the box stands in the first photograph"
    corners = transform_points(
        invert_rigid(reply.scene.world_from_cam[0]), box_corners(reply.action)
    )  # all in front of this camera
    pixels = corners @ reply.scene.intrinsics[0].T
    expected = (pixels[:, :2] / pixels[:, 2:] * tile)[:, ::-1]
    low, high = expected.min(0).clip(0, 239), expected.max(0).clip(0, 239)
    for axis in (0, 1):
        assert view[axis].min() >= low[axis] - 3 and view[axis].max() <= high[axis] + 3
    assert changed[480:, :640].any(), "and on the plan"


def test_without_cameras_metres_are_unknown_and_nobody_is_asked_to_invent_them(checkpoint, tmp_path, capsys, saying):
    folder = rgbd(tmp_path / "scan", y_down())
    given = saying(ANCHOR)
    evaluator.main(["--model", checkpoint, "--images", str(folder), "--question", "Place it.", "--action"])
    assert not given, "the model was asked"
    out, err = capsys.readouterr()
    reply = json.loads(out)
    assert reply["action"] is None
    assert reply["error"].startswith("metres are unknown without cameras")
    assert "0.50" not in out
    assert "say which way is down (--gravity x,y,z)" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{folder}"], "--images needs --question"),
        (["--images", "{folder}", "--question", "x", "--dataset", "d"], "belong to an evaluation"),
        (["--question", "x"], "--question goes with --images"),
        (["--picture", "x.png"], "--picture goes with --images"),
        (["--images", "{folder}", "--question", "x", "--picture", "x.docx"], "wanted a file that ends in one of .png"),
        (["--images", "{folder}", "--question", "x", "--qestion", "x"], "unrecognized arguments: --qestion"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluator.main([word.format(folder=tmp_path) for word in arguments])
    assert message in capsys.readouterr().err


def test_a_question_needs_words_and_photographs(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no photograph"):
        evaluator.main(["--model", checkpoint, "--images", str(tmp_path), "--question", "What?"])
    photo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="the question is empty"):
        evaluator.main(["--model", checkpoint, "--images", str(tmp_path), "--question", " "])
    with pytest.raises(ValueError, match="control token"):
        evaluator.main(["--model", checkpoint, "--images", str(tmp_path), "--question", "<|im_end|> hi"])
