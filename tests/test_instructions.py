"""Instructions are made exactly where their words fit one thing, or all of a kind."""

from __future__ import annotations

import numpy as np

from datasets_scripts.capture import Skips
from datasets_scripts.instructions import View, action_samples
from datasets_scripts.schema import validate_sample
from tests.frames import camera

INTRINSICS = np.array([[300.0, 0, 320], [0, 300, 240], [0, 0, 1]])


def box(label: str, center: tuple[float, float, float], side: float = 0.5) -> dict:
    return {"label": label, "kind": "object", "center": list(center), "size": [side] * 3, "axes": np.eye(3).tolist()}


def view(frame_id: str, eye: tuple[float, float, float] = (0, 0, 1), forward=(0, 1, 0), depth_m=None) -> View:
    return View(frame_id, (640, 480), INTRINSICS, camera(eye, forward), depth_m)


def told(targets: list[dict], views: list[View], skips: Skips | None = None) -> dict[str, list[tuple]]:
    """Instruction -> (centres of its targets, anchor frame), checked against the schema."""
    rows = action_samples("scene", targets, views, skips or Skips())
    found: dict[str, list[tuple]] = {}
    for row in rows:
        validate_sample(row)
        centers = sorted(tuple(target["center"]) for target in row["targets"])
        found.setdefault(row["question"], []).append((centers, row["anchor_frame_id"]))
    assert len({row["sample_id"] for row in rows}) == len(rows)
    return found


NEAR, FAR = (0.6, 2.0, 1.0), (-1.0, 4.0, 1.0)


def test_a_single_thing_is_named_by_its_label() -> None:
    assert told([box("sofa", NEAR)], [view("a")]) == {"Place an anchor on the sofa.": [([NEAR], None)]}


def test_two_things_are_told_apart_by_what_the_first_view_shows() -> None:
    assert told([box("chair", NEAR), box("chair", FAR)], [view("a")]) == {
        "Place an anchor on every chair.": [([FAR, NEAR], None)],
        "Place an anchor on the chair closest to the first camera.": [([NEAR], "a")],
        "Place an anchor on the left-most chair in the first photograph.": [([FAR], "a")],
        "Place an anchor on the right-most chair in the first photograph.": [([NEAR], "a")],
    }


def test_the_largest_is_larger_by_half() -> None:
    text = "Place an anchor on the largest chair."
    assert told([box("chair", NEAR, 0.6), box("chair", FAR)], [view("a")])[text] == [([NEAR], None)]
    assert text not in told([box("chair", NEAR, 0.55), box("chair", FAR)], [view("a")])


def test_things_about_as_near_or_in_one_direction_are_not_told_apart() -> None:
    found = told([box("chair", (0.6, 2.0, 1.0)), box("chair", (-0.6, 2.2, 1.0))], [view("a")])
    assert "Place an anchor on the chair closest to the first camera." not in found
    found = told([box("chair", (0.0, 2.0, 0.7)), box("chair", (0.1, 4.0, 1.6))], [view("a")])
    assert not [text for text in found if "-most" in text]


def test_a_thing_that_no_view_sees_is_not_asked_for_but_makes_its_label_ambiguous() -> None:
    skips = Skips()
    assert told([box("sofa", (0, -3, 1)), box("sofa", NEAR)], [view("a")], skips) == {
        "Place an anchor on the sofa closest to the first camera.": [([NEAR], "a")]
    }
    assert skips.counts == {"box that no kept view sees": 1}


def test_what_stands_behind_something_is_not_seen() -> None:
    wall = np.full((48, 64), 1.0)
    assert told([box("sofa", NEAR)], [view("a", depth_m=wall)]) == {}
    assert told([box("sofa", NEAR)], [view("a", depth_m=np.full((48, 64), 5.0))])
    assert told([box("sofa", NEAR)], [view("a", depth_m=np.zeros((48, 64)))])  # no depth measured hides nothing


def test_a_thing_half_in_the_picture_spoils_left_and_right() -> None:
    edge = (3.2, 2.6, 1.0)  # mostly beyond the right edge
    found = told([box("chair", NEAR), box("chair", FAR), box("chair", edge)], [view("a")])
    assert not [text for text in found if "-most" in text]


def test_at_most_two_views_for_one_wording() -> None:
    views = [view(name, (0.1 * i, 0, 1)) for i, name in enumerate("abcd")]
    found = told([box("chair", NEAR), box("chair", FAR)], views)
    assert [anchor for _, anchor in found["Place an anchor on the chair closest to the first camera."]] == ["a", "b"]


def test_more_than_twelve_are_not_asked_for_together() -> None:
    chairs = [box("chair", (0.4 * (i - 6), 5.0, 1.0), 0.3) for i in range(13)]
    assert "Place an anchor on every chair." not in told(chairs, [view("a")])
    assert "Place an anchor on every chair." in told(chairs[:12], [view("a")])


def test_walls_are_told_apart_by_size_alone() -> None:
    def wall(x: float, width: float) -> dict:
        axes = [[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]]
        return {"label": "wall", "kind": "plane", "center": [x, 3.0, 1.2], "size": [width, 0.0, 2.4], "axes": axes}

    found = told([wall(-0.9, 0.8), wall(0.7, 2.0)], [view("a")])
    assert sorted(found) == ["Place an anchor on every wall.", "Place an anchor on the largest wall."]
