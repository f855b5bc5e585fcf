"""Actions: one definition, its text, its parser and its schema; and the laws of the ref frame."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest

from processing.action_vggt_qwen3 import (
    ACTION_SCHEMA,
    MAX_ANCHORS,
    ActionError,
    action_anchors,
    action_box,
    action_from_targets,
    action_to_world,
    check_action,
    format_action,
    parse_action,
)
from processing.geometry_vggt_qwen3 import invert_rigid, ref_from_world, transform_points
from tests.frames import camera, turn_and_move

CHAIR = (
    '{"action":"place_anchor","label":"office chair","center":[1.25,2.00,-0.40],"extent":[0.50,0.60,0.90],'
    '"normal":[0.00,-1.00,0.00]}'
)


def yawed(angle: float) -> np.ndarray:
    """Box axes as rows, turned about the vertical."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1.0]])


def target(kind="object", center=(1.0, 3.0, 0.5), size=(0.4, 0.8, 1.0), yaw=0.0, label="chair") -> dict:
    return {"label": label, "kind": kind, "center": list(center), "size": list(size), "axes": yawed(yaw).tolist()}


def random_target(rng: np.random.Generator) -> dict:
    kind = ["object", "plane", "round"][rng.integers(3)]
    size = rng.uniform(0.2, 2.5, 3)
    size[1] = {"object": size[1], "plane": 0.0, "round": size[0]}[kind]
    center = [*rng.uniform(-5, 5, 2), rng.uniform(0, 2)]
    return target(kind, center, size, rng.uniform(-np.pi, np.pi), ["chair", "wall", "floor lamp"][rng.integers(3)])


def random_camera(rng: np.random.Generator) -> np.ndarray:
    return camera(rng.uniform(-3, 3, 3), [*rng.normal(size=2), rng.uniform(-1, 1)])


def moved(target: dict, new_from_world: np.ndarray) -> dict:
    rotation = new_from_world[:3, :3]
    center = transform_points(new_from_world, target["center"]).tolist()
    return {**target, "center": center, "axes": (np.asarray(target["axes"]) @ rotation.T).tolist()}


def test_the_canonical_text_is_exact():
    action = action_from_targets("place_anchor", [target(center=(1.0, 3.0, -0.001))], np.eye(4))
    assert format_action(action) == (
        '{"action":"place_anchor","label":"chair","center":[1.00,3.00,0.00],"extent":[0.40,0.80,1.00],'
        '"normal":[0.00,-1.00,0.00]}'
    )
    assert format_action(parse_action(CHAIR)) == CHAIR


def test_formatting_and_parsing_are_inverse_and_fit_the_schema():
    rng = np.random.default_rng(0)
    validator = jsonschema.Draft202012Validator(ACTION_SCHEMA)
    jsonschema.Draft202012Validator.check_schema(ACTION_SCHEMA)
    for index in range(200):
        name = ["place_anchor", "place_anchors"][index % 2]
        targets = [random_target(rng) for _ in range(1 if index % 2 == 0 else rng.integers(1, 13))]
        text = format_action(action_from_targets(name, targets, ref_from_world(random_camera(rng))))
        action = parse_action(text)
        assert format_action(action) == text
        assert " " not in re.sub(r'"label":"[^"]*"', "", text) and "-0.00" not in text
        validator.validate(json.loads(text))
        validator.validate(action_to_world(action, np.eye(4), "scene0000_00"))


def test_moving_the_world_changes_no_text_and_moves_the_answer_with_it():
    rng = np.random.default_rng(1)
    for _ in range(200):
        world_from_cam, new_from_world = random_camera(rng), turn_and_move(rng.uniform(-9, 9), rng.uniform(-90, 90, 3))
        targets = [random_target(rng) for _ in range(5)]
        here = ref_from_world(world_from_cam)
        there = ref_from_world(new_from_world @ world_from_cam)
        text = format_action(action_from_targets("place_anchors", targets, here))
        again = [moved(target, new_from_world) for target in targets]
        assert format_action(action_from_targets("place_anchors", again, there)) == text
        old = action_anchors(action_to_world(parse_action(text), invert_rigid(here)))
        new = action_anchors(action_to_world(parse_action(text), invert_rigid(there)))
        for before, after in zip(old, new):
            assert np.abs(transform_points(new_from_world, before["center"]) - after["center"]).max() < 1e-3
            assert np.allclose(new_from_world[:3, :3] @ before["normal"], after["normal"], atol=1e-9)
            assert np.isclose(np.linalg.norm(after["normal"]), 1)
            assert before["extent"] == after["extent"]


def test_round_numbers_and_ties_do_not_flip_with_the_world():
    """Halves of a centimetre, a box seen exactly from its corner, and two objects equally far away."""
    world_from_cam = camera((0, 0, 0), (0, 1, 0))
    targets = [
        target(center=(0.125, 2.005, -0.375), size=(0.225, 0.345, 1.115)),
        target(center=(2.0, 2.0, 0.0), size=(0.5, 0.7, 1.0), label="box"),
        target(center=(-2.0, 2.0, 0.0), size=(0.5, 0.7, 1.0), label="box"),
    ]
    texts = set()
    for angle in np.linspace(0, 6, 50):
        new_from_world = turn_and_move(angle, (13.37 * angle, -71.3, 0.1 * angle))
        ref = ref_from_world(new_from_world @ world_from_cam)
        again = [moved(target, new_from_world) for target in targets]
        texts.add(format_action(action_from_targets("place_anchors", again, ref)))
    assert len(texts) == 1


def test_an_object_shows_the_axis_that_faces_the_first_camera():
    def facing(yaw: float, center=(0.0, 4.0, 0.0)) -> dict:
        return action_from_targets("place_anchor", [target(center=center, size=(0.4, 0.8, 1.0), yaw=yaw)], np.eye(4))

    straight, quarter = facing(0.3), facing(0.3 + np.pi / 2)
    assert np.allclose(straight["normal"], [np.sin(0.3), -np.cos(0.3), 0])
    assert straight["extent"] == [0.4, 0.8, 1.0], "width across the normal, depth along it"
    assert np.allclose(quarter["normal"], straight["normal"])
    assert quarter["extent"] == [0.8, 0.4, 1.0]
    beside = facing(0.0, center=(-4.0, 1.0, 0.0))
    assert np.allclose(beside["normal"], [1, 0, 0]) and beside["extent"] == [0.8, 0.4, 1.0]


def test_a_plane_keeps_the_side_that_faces_the_room():
    wall = target("plane", center=(0.0, 4.0, 1.0), size=(5.0, 0.12, 2.6), yaw=0.0, label="wall")
    action = action_from_targets("place_anchor", [wall], np.eye(4))
    assert action["normal"] == [0.0, 1.0, 0.0], "away from the camera, for the camera stands behind the wall"
    assert action["extent"] == [5.0, 0.0, 2.6]


def test_a_round_object_points_to_the_first_camera_whatever_its_axes():
    for yaw in (0.0, 0.4, 1.9):
        lamp = target("round", center=(3.0, 4.0, -1.0), size=(0.3, 0.3, 1.5), yaw=yaw)
        action = action_from_targets("place_anchor", [lamp], np.eye(4))
        assert np.allclose(action["normal"], [-0.6, -0.8, 0])
    below = target("round", center=(0.0, 0.0, -1.0), size=(0.3, 0.3, 1.5))
    assert action_from_targets("place_anchor", [below], np.eye(4))["normal"] == [0.0, -1.0, 0.0]
    with pytest.raises(ActionError, match=r"round target 'chair' is 0\.3 m by 0\.5 m"):
        action_from_targets("place_anchor", [target("round", size=(0.3, 0.5, 1.0))], np.eye(4))


def test_place_anchors_holds_the_nearest_first():
    targets = [target(center=(0.0, distance, 0.0), label=f"chair {distance}") for distance in (9, 3, 14, 5)]
    action = action_from_targets("place_anchors", targets, np.eye(4))
    assert [anchor["label"] for anchor in action["anchors"]] == ["chair 3", "chair 5", "chair 9", "chair 14"]
    many = [target(center=(0.0, distance, 0.0), label=f"chair {distance}") for distance in range(20, 0, -1)]
    anchors = action_from_targets("place_anchors", many, np.eye(4))["anchors"]
    assert [anchor["label"] for anchor in anchors] == [f"chair {n}" for n in range(1, MAX_ANCHORS + 1)]


def test_the_box_of_an_action_is_the_target():
    rng = np.random.default_rng(3)
    for _ in range(50):
        source = random_target(rng)
        action = action_from_targets("place_anchor", [source], np.eye(4))
        center, size, axes = action_box(action)
        assert np.allclose(axes @ axes.T, np.eye(3)) and np.isclose(np.linalg.det(axes), 1)
        assert np.allclose(axes[1], action["normal"])
        if source["kind"] != "round":
            box = np.asarray(source["axes"]).T * source["size"]
            assert np.allclose(box @ box.T, (axes.T * size) @ (axes.T * size).T), (
                "the same box, whatever the axis order"
            )
        assert np.allclose(center, source["center"])
    with pytest.raises(ActionError, match="several boxes"):
        action_box({"action": "place_anchors", "anchors": []})


def test_a_decoded_action_names_its_scene_and_has_a_unit_normal():
    text = CHAIR.replace("[0.00,-1.00,0.00]", "[0.71,-0.70,0.00]")
    action = action_to_world(parse_action(text), np.eye(4), "scene0011_00")
    assert list(action) == ["action", "scene", "label", "center", "extent", "normal"]
    assert action["scene"] == "scene0011_00"
    assert np.isclose(np.linalg.norm(action["normal"]), 1, atol=1e-12)
    assert "scene" not in action_to_world(parse_action(text), np.eye(4))
    assert "scene" not in format_action(action)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (CHAIR, "brown", "no action: it starts with 'brown'"),
        (CHAIR, "", "no action: it starts with ''"),
        (CHAIR, CHAIR[:-2], "not JSON: .* before the end of the text"),
        (CHAIR, CHAIR + " done", "not JSON: Extra data .* before 'done'"),
        (CHAIR, "[" + CHAIR + "]", "no action: it starts with"),
        (CHAIR, '{"a":' * 100_000, "nested too deep"),
        ("place_anchor", "remove_anchor", '"action" is "remove_anchor", wanted one of place_anchor, place_anchors'),
        ('"label"', '"name"', 'missing "label"'),
        ('"label"', '"colour":"red","label"', 'unknown "colour"'),
        ('"label"', '"label":"a","label"', "repeated key 'label'"),
        ('"office chair"', "7", '"label" is 7, wanted a string'),
        ('"office chair"', '""', '"label" has 0 characters'),
        ('"office chair"', '" chair"', "outer space"),
        ('"office chair"', '"a\\"b"', "wanted no quote"),
        ('"office chair"', '"a\\nb"', "control character"),
        ('"office chair"', f'"{"a" * 49}"', "has 49 characters, wanted 1 to 48"),
        ("1.25,", "", '"center" is .* wanted a list of 3 numbers'),
        ("1.25", '"1.25"', r'"center"\[0\] is "1.25", wanted a number'),
        ("1.25", "true", r'"center"\[0\] is true, wanted a number'),
        ("1.25", "NaN", "NaN is no number"),
        ("1.25", "1e999", r'"center"\[0\] is inf, wanted -99.99 to 99.99'),
        ("1.25", "9" * 5000, "not an action|wanted -99.99"),
        ("1.25", "100.00", r'"center"\[0\] is 100, wanted -99.99 to 99.99'),
        ("0.50,0.60", "0.50,-0.60", r'"extent"\[1\] is -0.6, wanted 0 to 99.99'),
        ("[0.00,-1.00,0.00]", "[0.00,0.00,0.00]", '"normal" has the length 0.00, wanted a unit vector'),
        ("[0.00,-1.00,0.00]", "[0.00,-0.80,0.60]", r'"normal"\[2\] is 0.6, wanted 0 to 0'),
    ],
)
def test_the_parser_gives_the_precise_reason(old, new, reason):
    with pytest.raises(ActionError, match=reason):
        parse_action(CHAIR.replace(old, new))


def test_a_list_of_anchors_is_checked_one_by_one():
    anchor = {key: value for key, value in parse_action(CHAIR).items() if key != "action"}

    def check(anchors) -> dict:
        return check_action({"action": "place_anchors", "anchors": anchors})

    assert len(check([anchor] * 12)["anchors"]) == 12
    for anchors, reason in (
        ([], "holds 0 anchors"),
        ([anchor] * 13, "holds 13 anchors, wanted 1 to 12"),
        ("chair", "wanted a list"),
        ([anchor, 3], r'"anchors\[1\]" is 3, wanted an object'),
        ([anchor, {**anchor, "extent": [1, 2]}], r'"anchors\[1\].extent" is \[1, 2\]'),
    ):
        with pytest.raises(ActionError, match=reason):
            check(anchors)


def test_free_spacing_order_and_decimals_are_read():
    loose = json.dumps({"normal": [0, -1, 0], **parse_action(CHAIR)}, indent=2)
    assert format_action(parse_action(f"\n {loose} \n")) == CHAIR


@pytest.mark.parametrize(
    ("name", "targets", "reason"),
    [
        ("place", [target()], "wanted one of place_anchor, place_anchors"),
        ("place_anchor", [], "exactly one target, got 0"),
        ("place_anchor", [target(), target()], "exactly one target, got 2; use place_anchors"),
        ("place_anchors", [], "holds 0 anchors"),
        ("place_anchor", [target("cube")], "kind 'cube', wanted one of object, plane, round"),
        ("place_anchor", [{**target(), "axes": np.eye(3)[::-1].tolist()}], r"the last \(0, 0, 1\)"),
        ("place_anchor", [{**target(), "axes": (2 * np.eye(3)).tolist()}], "wanted orthonormal rows"),
        ("place_anchor", [target(label="")], '"label" has 0 characters'),
    ],
)
def test_targets_are_checked(name, targets, reason):
    with pytest.raises(ActionError, match=reason):
        action_from_targets(name, targets, np.eye(4))
