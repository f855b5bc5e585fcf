"""Scores of actions: the schema shared with the processor, boxes against Monte Carlo, and each aggregate by hand."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc

from metrics.room_actions.actions import ACTION_SCHEMA, read_action
from metrics.room_actions.bootstrap import resample_counts
from metrics.room_actions.boxes import MIN_THICKNESS_M, Boxes, best_scale, oriented_iou
from metrics.room_actions.rows import _weighted_medians
from metrics.room_actions.scoring import score_actions
from processing import action_vggt_qwen3 as definition

ROOT = Path(__file__).parents[1]


def anchor(center=(1.0, 2.0, 0.5), extent=(1.0, 1.0, 1.0), yaw=0.0, label="chair") -> dict[str, Any]:
    """An anchor whose normal is +Y turned by `yaw` degrees."""
    angle = math.radians(yaw)
    normal = [-math.sin(angle), math.cos(angle), 0.0]
    return {"label": label, "center": list(center), "extent": list(extent), "normal": normal}


def place(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"action": "place_anchor", **anchor(*args, **kwargs)}


def place_all(*anchors: dict[str, Any]) -> dict[str, Any]:
    return {"action": "place_anchors", "anchors": list(anchors)}


def boxes(*anchors: dict[str, Any]) -> Boxes:
    return Boxes.from_anchors(anchors)


def scores(*args: Any, row: str = "all", **kwargs: Any) -> dict[str, float]:
    return score_actions(*args, num_resamples=0, **kwargs)[row]["scores"]


# one definition of an action


def test_the_schema_is_the_processors() -> None:
    assert ACTION_SCHEMA == definition.ACTION_SCHEMA


GOOD = place(extent=(0.4, 0.0, 2.0))
TEXTS = [
    definition.format_action(GOOD),
    definition.format_action(place_all(anchor(), anchor(label="dining table"))),
    json.dumps(GOOD, indent=2) + "\n",
    json.dumps({**GOOD, "scene": "room-1"}),
    "",
    "a chair",
    json.dumps(GOOD)[:-1],
    json.dumps(GOOD) + " and more",
    json.dumps([GOOD]),
    "7",
    json.dumps({**GOOD, "action": "place"}),
    json.dumps({**GOOD, "colour": "red"}),
    json.dumps({**GOOD, "scene": 7}),
    json.dumps({key: value for key, value in GOOD.items() if key != "normal"}),
    json.dumps({**GOOD, "label": ""}),
    json.dumps({**GOOD, "label": " chair"}),
    json.dumps({**GOOD, "label": 'a "chair"'}),
    json.dumps({**GOOD, "label": "x" * 49}),
    json.dumps({**GOOD, "center": [1.0, 2.0]}),
    json.dumps({**GOOD, "center": [1.0, 2.0, 3.0, 4.0]}),
    json.dumps({**GOOD, "center": [1.0, 2.0, "3"]}),
    json.dumps({**GOOD, "center": [1.0, 2.0, True]}),
    json.dumps({**GOOD, "center": [1.0, 2.0, 100.0]}),
    json.dumps({**GOOD, "center": [1.0, 2.0, math.nan]}),
    json.dumps({**GOOD, "extent": [1.0, -0.01, 1.0]}),
    json.dumps({**GOOD, "normal": [0.0, 0.5, 0.0]}),
    json.dumps({**GOOD, "normal": [0.0, 0.95, 0.0]}),
    json.dumps({**GOOD, "normal": [0.0, 1.0, 0.2]}),
    json.dumps({**GOOD, "normal": [0, 1, 0]}),
    json.dumps(place_all()),
    json.dumps(place_all(*[anchor()] * 12)),
    json.dumps(place_all(*[anchor()] * 13)),
    json.dumps(place_all({**anchor(), "action": "place_anchor"})),
    json.dumps({"action": "place_anchors", "anchors": anchor()}),
    json.dumps(GOOD).replace('"label"', '"label":"sofa","label"'),
    '{"action":' * 100_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_reads_what_the_processor_reads(text: str) -> None:
    try:
        wanted = definition.parse_action(text)
    except definition.ActionError:
        wanted = None
    reading = read_action(text)
    assert reading.action == wanted
    assert (reading.error is None) == (wanted is not None)


def test_parsed_and_valid_are_told_apart() -> None:
    assert [read_action(text).is_parsed for text in ("a chair", "[1]", "7")] == [False] * 3
    reading = read_action(json.dumps({**GOOD, "label": ""}))
    assert reading.is_parsed and reading.action is None and "label" in reading.error
    assert read_action(None).error == "no action"
    nan = {**GOOD, "center": [math.nan, 0.0, 0.0]}
    assert read_action(nan).error == "a number is not finite"


def test_an_action_of_the_world_frame_is_valid() -> None:
    angle, tilt = 0.3, 1e-9  # what a product of matrices leaves
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [tilt, tilt, 1]])
    world_from_ref = np.eye(4)
    world_from_ref[:3, :3], world_from_ref[:3, 3] = turn, [4.0, -1.0, 1.5]
    action = definition.action_to_world(place(yaw=20.0), world_from_ref, "room-1")
    assert action["normal"][2] != 0.0
    assert read_action(action).action is not None


# boxes


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        (anchor(), anchor(), 1.0),
        (anchor(), anchor((1.5, 2.0, 0.5)), 1 / 3),
        (anchor(), anchor((1.0, 2.0, 1.0)), 1 / 3),
        (anchor(), anchor(extent=(2.0, 2.0, 2.0)), 1 / 8),
        (anchor(), anchor((2.0, 2.0, 0.5)), 0.0),
        (anchor(), anchor((9.0, 2.0, 0.5)), 0.0),
        (anchor(), anchor((1.0, 2.0, 3.5)), 0.0),
        (anchor(), anchor(yaw=45.0), (2 * math.sqrt(2) - 2) / (4 - 2 * math.sqrt(2))),  # a regular octagon in common
        (
            anchor(extent=(2.0, 1.0, 1.0)),
            anchor(extent=(1.0, 2.0, 1.0), yaw=90.0),
            1.0,
        ),  # the same box, named otherwise
        (anchor(extent=(2.0, 1.0, 1.0)), anchor(extent=(2.0, 1.0, 1.0), yaw=90.0), 1 / 3),
        (anchor(yaw=10.0), anchor(yaw=190.0), 1.0),
    ],
)
def test_iou_by_hand(first: dict, second: dict, iou: float) -> None:
    assert oriented_iou(boxes(first), boxes(second))[0] == pytest.approx(iou)
    assert oriented_iou(boxes(second), boxes(first))[0] == pytest.approx(iou)


def test_planes_get_a_minimal_thickness() -> None:
    door = anchor((0.0, 3.0, 1.0), (0.9, 0.0, 2.0))
    half_off = anchor((0.0, 3.0 + MIN_THICKNESS_M / 2, 1.0), (0.9, 0.0, 2.0))
    assert oriented_iou(boxes(door), boxes(door))[0] == pytest.approx(1.0)
    assert oriented_iou(boxes(door), boxes(half_off))[0] == pytest.approx(1 / 3)
    thin = anchor((0.0, 3.0, 1.0), (0.9, 0.04, 2.0))
    assert oriented_iou(boxes(door), boxes(thin))[0] == pytest.approx(1.0)
    assert oriented_iou(boxes(thin), boxes(door), min_thickness_m=0.04)[0] == pytest.approx(1.0)


def _random_anchors(generator: np.random.Generator, count: int, spread: float) -> list[dict[str, Any]]:
    return [
        anchor(generator.uniform(-spread, spread, 3), generator.uniform(0.2, 2.0, 3), generator.uniform(0.0, 360.0))
        for _ in range(count)
    ]


def _inside(points: np.ndarray, box: Boxes) -> np.ndarray:
    offsets = points - box.centers[0]
    along = offsets[:, :2] @ box.normals[0]
    across = offsets[:, :2] @ np.array([-box.normals[0, 1], box.normals[0, 0]])
    return (np.abs(np.stack([across, along, offsets[:, 2]], axis=1)) <= box.sizes[0] / 2).all(axis=1)


def test_iou_agrees_with_monte_carlo_on_1000_pairs() -> None:
    generator = np.random.default_rng(0)
    first, second = (boxes(*_random_anchors(generator, 1000, spread=0.4)) for _ in range(2))
    exact = oriented_iou(first, second)
    unit = qmc.Sobol(3, seed=0).random_base2(14) - 0.5
    for index in range(1000):
        one, other = first[index : index + 1], second[index : index + 1]
        local = unit * one.sizes[0]
        across = np.array([-one.normals[0, 1], one.normals[0, 0]])
        horizontal = local[:, :1] * across + local[:, 1:2] * one.normals[0]
        points = one.centers[0] + np.concatenate([horizontal, local[:, 2:]], axis=1)
        common = _inside(points, other).mean() * one.sizes[0].prod()
        estimate = common / (one.sizes[0].prod() + other.sizes[0].prod() - common)
        assert exact[index] == pytest.approx(estimate, abs=0.01)
    assert (exact > 0.25).sum() > 100  # the pairs do overlap


# aggregates


def test_a_right_action_is_perfect_in_either_frame() -> None:
    target = {"label": "desk", "kind": "object", "center": [3.0, 1.0, 0.4], "size": [1.2, 0.6, 0.75]}
    angle = 0.4
    target["axes"] = [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    ref_from_world = np.eye(4)
    ref_from_world[:3, 3] = [-1.0, -1.0, -1.5]
    single = definition.action_from_targets("place_anchor", [target], ref_from_world)
    several = definition.action_from_targets(
        "place_anchors", [target, {**target, "center": [0.0, 2, 0]}], ref_from_world
    )
    world = [definition.action_to_world(each, np.linalg.inv(ref_from_world), "r") for each in (single, several)]
    for actions in ([single, several], world):
        found = scores(actions, actions)
        wanted = {name: 100.0 for name in found} | {"iou_mean": 1.0}
        wanted |= {name: 0.0 for name in found if "median" in name}
        assert found == pytest.approx(wanted, abs=1e-5)
    text = scores([definition.format_action(single)], [single])
    assert text["center_error_median_m"] < 0.01 and text["iou_mean"] > 0.95  # two decimals


def test_failures_count_in_every_aggregate_but_the_placed_ones() -> None:
    reference = place((1.0, 2.0, 0.5))
    predictions = [
        json.dumps(place((1.0, 2.2, 0.5), yaw=30.0)),  # 0.2 m off
        json.dumps(place((1.0, 2.4, 0.5), (1.3, 1.0, 1.0), label="Chair")),  # 0.4 m off, 0.1 m too large on average
        json.dumps(place(label="sofa")),  # right place, wrong name
        "the chair is here",
        json.dumps({**place(), "label": ""}),
        json.dumps(place_all(anchor())),  # a valid action, but not the one asked for
        None,
        json.dumps(place((9.0, 2.0, 0.5))),
    ]
    result = score_actions(predictions, [reference] * 8, num_resamples=0, per_sample=True)
    row = result["all"]
    assert row["count"] == {"all": 8, "place_anchor": 8, "place_anchors": 0}
    wanted = {
        "parse_rate": 75.0,
        "schema_validity": 62.5,
        "action_accuracy": 50.0,
        "label_accuracy": 37.5,
        "center_error_median_m": None,  # the median lies between 8 m and a failure
        "center_error_median_placed_m": 0.3,
        "center_within_0.10_m": 12.5,
        "center_within_0.25_m": 25.0,
        "center_within_0.50_m": 37.5,
        "extent_error_median_placed_m": 0.0,
        "normal_angle_median_placed_deg": 0.0,
        "normal_within_15_deg_placed": 75.0,
        "iou_over_0.25": 37.5,
    }
    assert {name: row["scores"][name] for name in wanted} == pytest.approx(wanted)
    overlaps = result["per_sample"]["iou"]
    assert row["scores"]["iou_mean"] == pytest.approx(sum(overlaps) / 8, abs=1e-6)
    assert overlaps[2] == 1.0 and overlaps[3:] == [0.0] * 5
    assert result["per_sample"]["normal_angle"][0] == pytest.approx(30.0)
    assert result["per_sample"]["extent_error"][1] == pytest.approx(0.1)
    assert result["per_sample"]["center_error"][3] is None and "not JSON" in result["per_sample"]["error"][3]
    json.dumps(result, allow_nan=False)


def test_labels_agree_across_spellings() -> None:
    assert scores([place(label="TV_Monitor")], [place(label="tv-monitor")])["label_accuracy"] == 100.0


def test_round_things_have_no_direction() -> None:
    reference, turned = place(), place(yaw=45.0)
    as_object = score_actions([turned], [reference], num_resamples=0)["all"]["scores"]
    as_round = score_actions([turned], [reference], kinds=["round"], num_resamples=0)["all"]["scores"]
    assert as_object["iou_mean"] == pytest.approx(0.7071, abs=1e-4)
    assert as_round["iou_mean"] == pytest.approx(1.0)
    assert as_object["normal_angle_median_placed_deg"] == pytest.approx(45.0)
    assert "normal_angle_median_placed_deg" not in as_round
    found, wanted = place_all(anchor((1.0, 2.0, 0.75), yaw=45.0)), place_all(anchor())
    assert scores([found], [wanted])["f1@0.50"] == 0.0
    assert scores([found], [wanted], kinds=[["round"]])["f1@0.50"] == 100.0


def test_thin_things_and_furniture_apart() -> None:
    door, picture = place(extent=(0.9, 0.0, 2.0)), place(extent=(0.5, 0.04, 0.4))
    both = place_all(anchor(), anchor((5.0, 0.0, 1.0), (0.9, 0.0, 2.0)))
    references = [door, picture, place(), both, place(extent=(1.0, 0.2, 1.0))]
    result = score_actions(references, references, kinds=["plane", "object", "object", "object", "plane"])
    counts = {name: row["count"]["all"] for name, row in result["by_kind"].items()}
    assert counts == {"thin": 3, "furniture": 1, "mixed": 1}


def test_sets_by_hand() -> None:
    wanted = place_all(anchor((0.0, 3.0, 0.5)), anchor((2.0, 3.0, 0.5)), anchor((4.0, 3.0, 0.5)))
    found = place_all(anchor((0.0, 3.0, 0.5)), anchor((2.5, 3.0, 0.5)))  # IoU 1 and 1/3
    row = scores([found], [wanted])
    assert row["precision@0.25"] == row["f1@0.25"] * 5 / 4 == 100.0
    assert row["recall@0.25"] == pytest.approx(200 / 3)
    assert (row["precision@0.50"], row["f1@0.50"]) == pytest.approx((50.0, 40.0))
    assert row["count_accuracy"] == 0.0 and "iou_mean" not in row
    twice = scores([place_all(anchor((0.0, 3.0, 0.5)), anchor((0.0, 3.0, 0.5)))], [wanted])
    assert twice["f1@0.50"] == pytest.approx(40.0)  # one reference is hit once
    renamed = scores([place_all(anchor((0.0, 3.0, 0.5), label="sofa"))], [wanted])
    assert renamed["f1@0.25"] == 0.0
    failed = scores(["nonsense", found], [wanted, wanted])
    assert failed["f1@0.25"] == pytest.approx(40.0) and failed["schema_validity"] == 50.0


def test_sets_are_matched_as_a_whole() -> None:
    # Greedily the first prediction (between both) takes the nearer reference, which the second alone can reach.
    wanted = place_all(anchor((0.0, 0.0, 0.0)), anchor((0.8, 0.0, 0.0)))
    found = place_all(anchor((0.35, 0.0, 0.0)), anchor((-0.4, 0.0, 0.0)))
    assert scores([found], [wanted])["f1@0.25"] == 100.0


def test_any_right_instance_gets_its_own_row() -> None:
    first, second, third = place((0.0, 3.0, 0.5)), place((4.0, 3.0, 0.5)), place((0.0, 9.0, 0.5), label="table")
    nearby = place((4.0, 3.2, 0.5))
    result = score_actions([nearby, first], [first, first], alternatives=[[second, third], []], num_resamples=0)
    assert result["all"]["scores"]["iou_over_0.50"] == 50.0
    assert result["any_instance"]["scores"]["iou_over_0.50"] == 100.0
    assert result["any_instance"]["scores"]["center_within_0.25_m"] == 100.0
    far = scores([place((0.0, 9.9, 2.0), label="table")], [first], alternatives=[[second, third]], row="any_instance")
    assert far["label_accuracy"] == 100.0  # overlaps none: the nearest counts
    box, tiny, shifted = place(), place(extent=(0.2, 0.2, 0.2)), place((1.1, 2.0, 0.5))
    most = scores([box], [tiny], alternatives=[[shifted]], row="any_instance")
    assert most["iou_over_0.50"] == 100.0  # the instance that overlaps most counts, not the nearest


def test_oracle_scale_forgives_scale_and_nothing_else() -> None:
    reference = place((1.0, 4.0, -0.5), (1.0, 0.6, 0.8), yaw=20.0)
    half = place((0.5, 2.0, -0.25), (0.5, 0.3, 0.4), yaw=20.0)
    aside = place((-1.0, 4.0, -0.5), (1.0, 0.6, 0.8), yaw=20.0)
    result = score_actions([half, aside], [reference, reference], num_resamples=0, per_sample=True)
    assert result["all"]["scores"]["iou_over_0.25"] == 0.0
    oracle = result["oracle_scale"]["scores"]
    assert oracle["iou_over_0.50"] == 50.0 and oracle["center_within_0.10_m"] == 50.0
    assert oracle["iou_mean"] == pytest.approx(0.5, abs=1e-6)
    wanted = place_all(anchor((1.0, 4.0, 0.0)), anchor((-2.0, 3.0, 0.0)), anchor((0.0, 6.0, 0.5)))
    found = place_all(*[anchor(np.array(each["center"]) / 3, (1 / 3,) * 3) for each in reversed(wanted["anchors"])])
    rows = score_actions([found], [wanted], num_resamples=0)
    assert (rows["all"]["scores"]["f1@0.25"], rows["oracle_scale"]["scores"]["f1@0.50"]) == (0.0, 100.0)


def test_oracle_scale_works_about_the_first_camera() -> None:
    camera = np.array([5.0, -2.0, 1.4])
    offset = np.array([1.0, 4.0, -0.5])
    reference = {**place(camera + 2 * offset, (2.0, 2.0, 2.0)), "scene": "room-1"}
    prediction = {**place(camera + offset), "scene": "room-1"}
    result = score_actions([prediction], [reference], origins=[camera.tolist()], num_resamples=0)
    assert result["oracle_scale"]["scores"]["iou_mean"] == pytest.approx(1.0)
    without = score_actions([prediction], [reference], num_resamples=0)
    assert "oracle_scale" not in without and "give `origins`" in without["gaps"][0]


def test_best_scale_looks_beyond_the_nearest_pairing() -> None:
    assert best_scale(np.array([[0.0, 2.0, 0.0]]), np.array([[0.5, 2.0, 0.0], [0.0, 4.0, 0.0]])) == pytest.approx(2.0)


def test_best_scale_of_nothing_useful_is_one() -> None:
    assert best_scale(np.zeros((1, 3)), np.ones((1, 3))) == 1.0
    assert best_scale(-np.ones((1, 3)), np.ones((1, 3))) == 1.0


def test_scores_do_not_depend_on_the_frame() -> None:
    generator = np.random.default_rng(1)
    references = _random_anchors(generator, 40, spread=2.0)
    predictions = [
        anchor(np.array(each["center"]) + generator.normal(0, 0.2, 3), each["extent"], generator.uniform(0, 360))
        for each in references
    ]
    angle, shift = 1.1, np.array([3.0, -2.0, 0.7])
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])

    def moved(each: dict[str, Any]) -> dict[str, Any]:
        center, normal = turn @ np.array(each["center"]) + shift, turn @ np.array(each["normal"])
        return {**each, "center": center.tolist(), "normal": normal.tolist()}

    rows = [
        score_actions(
            [
                place_all(*map(change, predictions[:10])),
                *({"action": "place_anchor", **change(p)} for p in predictions),
            ],
            [place_all(*map(change, references[:10])), *({"action": "place_anchor", **change(r)} for r in references)],
            origins=[origin] * 41,
            num_resamples=20,
        )
        for change, origin in ((dict, (0.0, 0.0, 0.0)), (moved, shift.tolist()))
    ]
    for name in ("all", "oracle_scale"):
        assert rows[0][name]["scores"] == pytest.approx(rows[1][name]["scores"], abs=1e-6)


# intervals


def test_intervals_hold_the_value_and_repeat_by_seed() -> None:
    generator = np.random.default_rng(2)
    references = [{"action": "place_anchor", **each} for each in _random_anchors(generator, 80, spread=2.0)]
    predictions = [
        {**each, "center": (np.array(each["center"]) + generator.normal(0, 0.2, 3)).tolist()} if index % 5 else "no"
        for index, each in enumerate(references)
    ]
    rows = [score_actions(predictions, references, seed=seed, num_resamples=300)["all"] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] and rows[0]["intervals"] != rows[2]["intervals"]
    for metric, value in rows[0]["scores"].items():
        low, high = rows[0]["intervals"][metric]
        assert low <= value <= high, metric


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_medians_of_resamples_are_medians(size: int) -> None:
    column = np.random.default_rng(size).normal(size=size)
    column[0] = np.inf
    counts = np.concatenate(list(resample_counts(size, 50, seed=0)))
    wanted = [np.median(np.repeat(column, row.astype(int))) for row in counts]
    assert _weighted_medians(column, counts) == pytest.approx(wanted)


# refusals, and as users reach it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": []}, "predictions is empty.*references has 1 rows and predictions 0"),
        ({"references": [place(), place()]}, "references has 2 rows and predictions 1"),
        ({"references": [{**place(), "label": 3}]}, r"references\[0\] is no valid action: .*label.*3"),
        ({"kinds": ["cube"]}, r"kinds\[0\] is 'cube', wanted one of object, plane, round"),
        ({"kinds": [["object", "plane"]]}, r"kinds\[0\] .* or 1 of them"),
        ({"alternatives": [[place_all(anchor())]]}, r"alternatives\[0\]: only a place_anchor has alternatives"),
        ({"alternatives": [["x"]]}, r"alternatives\[0\]\[0\] is no valid action: not JSON"),
        ({"origins": [[0.0, 0.0]]}, r"origins\[0\] is \[0.0, 0.0\], wanted three finite"),
        ({"question_types": []}, "question_types has 0 rows"),
        ({"predictions": [place()] * 2, "references": [place()] * 2, "ids": ["a", "a"]}, "ids repeats 'a'"),
    ],
)
def test_wrong_input_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    inputs = {"predictions": [place()], "references": [place()], **changes}
    with pytest.raises(ValueError, match=message):
        score_actions(inputs.pop("predictions"), inputs.pop("references"), **inputs)


def test_loads_by_path_in_a_fresh_process_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "metrics" / "room_actions", tmp_path / "elsewhere" / "room_actions")
    program = f"""
import json, evaluate
metric = evaluate.load("elsewhere/room_actions")
action = json.loads({json.dumps(place())!r})
result = metric.compute(predictions=[None, action, json.dumps(action)], references=[action] * 3, num_resamples=0)
print(json.dumps(result["all"]["scores"]))
metric.add(prediction=action, reference=action)
print(metric.compute(kinds=["round"], question_types=["chairs"])["by_type"]["chairs"]["scores"]["iou_mean"])
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    row, overlap = run.stdout.splitlines()
    assert json.loads(row)["parse_rate"] == pytest.approx(200 / 3) and float(overlap) == pytest.approx(1.0)
