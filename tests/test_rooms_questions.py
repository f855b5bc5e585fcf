"""Questions about procedural rooms: answers recomputed from bare geometry, ambiguity, balance; and the instructions."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from datasets_scripts.rooms.actions import instruction_rows, instructions
from datasets_scripts.rooms.balance import blind_baseline, family_of
from datasets_scripts.rooms.catalogue import CATALOGUE, named, plural
from datasets_scripts.rooms.families import FAMILIES
from datasets_scripts.rooms.questions import (
    MIN_VISIBLE,
    accepted_answers,
    candidates,
    question_rows,
    select,
    visible_objects,
)
from datasets_scripts.rooms.room import generate_room, room_rng
from datasets_scripts.schema import QUESTION_TYPES, question_type, validate_sample

SEED, NUM_TRAIN, NUM_HELDOUT, SIZE = 11, 90, 40, 112
LABELS = {named(label): label for label in CATALOGUE} | {plural(label): label for label in CATALOGUE}


def ask(room, index, split, visible=None, count=12):
    rng = room_rng(SEED, split, index, "questions")
    visible = list(range(len(room.objects))) if visible is None else visible
    return question_rows(room, select(candidates(room, visible, rng), count, rng), rng)


@pytest.fixture(scope="module")
def asked():
    """(room, rows) of training and held-out rooms, every object taken as visible."""
    rooms = {"train": NUM_TRAIN, "heldout": NUM_HELDOUT}
    return {
        split: [(room, ask(room, i, split)) for i in range(n) for room in [generate_room(SEED, split, i, 1)]]
        for split, n in rooms.items()
    }


@pytest.fixture(scope="module")
def everything():
    """All candidate questions, worded, of a few rooms."""
    found = []
    for index in range(12):
        room = generate_room(SEED, "heldout", 500 + index, 1)
        rng = room_rng(SEED, "heldout", 500 + index, "questions")
        found.append((room, question_rows(room, candidates(room, list(range(len(room.objects))), rng), rng)))
    return found


def test_rows_fit_the_schema(asked):
    for room, rows in asked["train"]:
        assert len({row["sample_id"] for row in rows}) == len(rows) == 12
        for row in rows:
            validate_sample(row)
            assert row["scene_id"] == room.room_id
            assert row["question_type"] == question_type(row["question"])


def test_types_are_even(asked):
    types = Counter(row["question_type"] for _, rows in asked["train"] for row in rows)
    assert set(types) == set(QUESTION_TYPES)
    assert max(types.values()) < 1.1 * min(types.values())


def test_every_family_is_asked(everything):
    assert {family_of(row) for _, rows in everything for row in rows} == {family.name for family in FAMILIES}
    for family in FAMILIES:
        assert len({question_type(text) for text in family.texts}) == 1, family.name


# ------------------------------------------------------------------------------------ answers, recomputed from boxes


def world_boxes(room, label):
    """Label -> targets of all things of a class, in the world frame."""
    return [room.object_target(item) for item in room.objects if item.label == label]


def corners(target):
    signs = np.array([(x, y) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
    return np.array(target["center"])[:2] + (signs * target["size"][:2]) @ np.array(target["axes"])[:2, :2]


def gap(a, b, steps=25):
    """Distance between two boxes seen from above, by brute force over points of their outlines."""

    def outline(target):
        first, second, fourth, third = corners(target)
        share = np.linspace(0, 1, steps)[:, None]
        ring = [first, second, third, fourth, first]
        return np.concatenate([p + share * (q - p) for p, q in pairwise(ring)])

    return np.linalg.norm(outline(a)[:, None] - outline(b)[None], axis=-1).min()


def of_family(everything, name, least=5):
    found = [(room, row) for room, rows in everything for row in rows if family_of(row) == name]
    assert len(found) >= least, f"{name}: only {len(found)} questions"
    return found


def test_counts(everything):
    for room, row in of_family(everything, "how_many"):
        label = LABELS[re.match(r"How many (.+?) are (there|in the room)\?", row["question"])[1]]
        assert int(row["answers"][0]) == len(world_boxes(room, label)) == len(row["targets"])
    for room, row in of_family(everything, "how_many_color"):
        words = row["question"].removeprefix("How many ").removesuffix("?").removesuffix(" are there")
        color, name = words.split(" ", 1) if " are " not in words else words.split(" are ")[::-1]
        label = LABELS[name]
        number = sum(item.label == label and item.color == color for item in room.objects)
        assert int(row["answers"][0]) == number


def test_existence_and_colour(everything):
    for room, row in of_family(everything, "is_present"):
        label = LABELS[re.match(r"Is there an? (.+?) (here|in the room)\?", row["question"])[1]]
        assert row["answers"] == ["yes" if world_boxes(room, label) else "no"]
    for room, row in of_family(everything, "what_color"):
        label = LABELS[re.search(r"the ((?!color).+?)\?", row["question"].replace("the color of ", ""))[1]]
        (item,) = [item for item in room.objects if item.label == label]
        assert row["answers"][0] == item.color


def test_closest(everything):
    for room, row in of_family(everything, "which_closest"):
        names = re.findall(r"(?:to the|:|,|or) (?:the )?(.+?)(?=:|,| or|\?)", row["question"])
        goal, *options = [world_boxes(room, LABELS[name.strip()]) for name in names]
        assert len(goal) == 1 and len(options) == 3 and all(len(option) == 1 for option in options)
        gaps = {option[0]["label"]: gap(option[0], goal[0]) for option in options}
        assert row["answers"][0] == min(gaps, key=gaps.get)
        first, second, _ = sorted(gaps.values())
        assert second - first > 0.2  # no close call


def test_heights(everything):
    for room, row in of_family(everything, "is_taller", least=3):
        first, second = re.match(r"Is the (.+) taller than the (.+)\?", row["question"]).groups()
        tall = [world_boxes(room, LABELS[name])[0]["size"][2] for name in (first, second)]
        assert row["answers"] == ["yes" if tall[0] > tall[1] else "no"] and abs(tall[0] - tall[1]) > 0.1


def test_things_on_top(everything):
    for room, row in of_family(everything, "what_on", least=3):
        support = world_boxes(room, LABELS[re.match(r"What is on (?:top of )?the (.+)\?", row["question"])[1]])
        assert len(support) == 1
        top = support[0]["center"][2] + support[0]["size"][2] / 2
        on_it = []
        for item in room.objects:
            target = room.object_target(item)
            local = np.array(support[0]["axes"]) @ (np.array(target["center"]) - support[0]["center"])
            over = (np.abs(local[:2]) < np.array(support[0]["size"][:2]) / 2).all()
            if over and abs(target["center"][2] - target["size"][2] / 2 - top) < 0.02:
                on_it.append(item.label)
        assert on_it == [row["answers"][0]]


def bearing(row, target):
    """Degrees to the left of straight ahead, from the stored pose."""
    person = np.linalg.inv(row["situation_pose"])
    x, y, _ = person[:3, :3] @ target["center"] + person[:3, 3]
    return np.degrees(np.arctan2(-x, y))


def test_sides_follow_the_bearing_from_the_stated_position(everything):
    ranges = {"left": (45, 135), "right": (-135, -45), "front": (-45, 45)}
    for _, row in of_family(everything, "on_which_side", least=40):
        (target,) = row["targets"]
        angle = bearing(row, target)
        sides = [side for side, (low, high) in ranges.items() if low < angle < high] or ["behind"]
        assert row["answers"][0] == sides[0], (row["situation"], row["question"], angle)
        assert min(abs(abs(angle) - 45), abs(abs(angle) - 135)) > 10
    for _, row in of_family(everything, "how_turn", least=20):
        angle = bearing(row, row["targets"][0])
        assert row["answers"][0] == ("around" if abs(angle) > 135 else "left" if angle > 0 else "right")


def test_poses_match_the_words(everything):
    checked = 0
    for room, rows in everything:
        for row in rows:
            match = re.search(r"by the (.+), facing the (.+)\.", row["situation"] or "")
            if match is None:
                continue
            stand, goal = (world_boxes(room, LABELS[name])[0] for name in match.groups())
            pose = row["situation_pose"]
            offset = np.array(goal["center"])[:2] - pose[:2, 3]
            assert pose[:2, 1] @ offset / np.linalg.norm(offset) > 0.999
            reach = np.linalg.norm(np.array(stand["size"])[:2]) / 2 + 1.0
            assert np.linalg.norm(np.array(stand["center"])[:2] - pose[:2, 3]) < reach
            assert pose[2, 3] == pytest.approx(room.world_from_room[2, 3])
            checked += 1
    assert checked > 50


def test_named_things_are_unambiguous(everything):
    for room, rows in everything:
        counts = Counter(item.label for item in room.objects)
        for row in rows:
            for name in re.findall(r"the ([a-z ]+?)(?=[,.:?]| and| or|$)", row["situation"] or ""):
                if name in LABELS:
                    assert counts[LABELS[name]] == 1, row["situation"]


def test_hidden_things_spoil_questions():
    """With one of two chairs out of sight the other is not "the chair", nor is there one chair."""
    room = next(r for i in range(200) for r in [generate_room(SEED, "train", i, 1)] if _count(r, "chair") == 2)
    hidden = next(i for i, item in enumerate(room.objects) if item.label == "chair")
    visible = [i for i in range(len(room.objects)) if i != hidden]
    found = candidates(room, visible, np.random.default_rng(0))
    about = {candidate.family.name for candidate in found if "chair" in candidate.slots}
    assert "is_present" in about
    assert about <= {"is_present", "can_find", "are_more"}


def _count(room, label):
    return sum(item.label == label for item in room.objects)


def test_visibility_needs_pixels_in_one_view():
    room = generate_room(SEED, "train", 0, 2)
    pixels = np.zeros((2, len(room.objects) + 1), dtype=int)
    enough = int(np.ceil(MIN_VISIBLE * SIZE**2))
    pixels[0, 1], pixels[1, 2], pixels[:, 3] = enough, enough - 1, enough // 2 + 1
    assert visible_objects(pixels, SIZE) == [0]


# ------------------------------------------------------------------------------------------------------------- balance


def test_blind_guessing_stays_low(asked):
    rows = {split: [row for _, rows in pairs for row in rows] for split, pairs in asked.items()}
    scores = blind_baseline(rows["train"], rows["heldout"])
    ceilings = {"what": 0.3, "is": 0.62, "how": 0.48, "can": 0.62, "which": 0.4, "others": 0.5, "all": 0.45}
    above = {name: scores[name]["accuracy"] for name, most in ceilings.items() if scores[name]["accuracy"] > most}
    assert not above
    assert scores["all"]["count"] == NUM_HELDOUT * 12


def test_no_answer_dominates_its_family(asked):
    answers = {family.name: Counter() for family in FAMILIES}
    for _, rows in asked["train"]:
        for row in rows:
            answers[family_of(row)][row["answers"][0]] += 1
    for name, counts in answers.items():
        if counts.total() >= 40:
            most = 0.66 if set(counts) <= {"yes", "no"} else 0.5
            assert max(counts.values()) / counts.total() < most, (name, counts)


def test_blind_baseline_learns_what_can_be_learned():
    def row(question, answer, number):
        return {
            "sample_id": f"s/f/{number}",
            "question": question,
            "situation": None,
            "answers": [answer],
            "question_type": "is",
        }

    train = [row("Is a?", "yes", i) for i in range(10)] + [row("Is b?", "no", i) for i in range(9)]
    heldout = [row("Is a?", "yes", 0), row("Is b?", "no", 1), row("Is c?", "yes", 2), row("Is d?", "no", 3)]
    assert blind_baseline(train, heldout)["f"] == {"accuracy": 0.75, "count": 4}


# -------------------------------------------------------------------------------------------------------- instructions


@pytest.fixture(scope="module")
def instructed():
    """(room, pixels, rows): many instructions of a few rooms, everything in full view."""
    found = []
    for index in range(20):
        room = generate_room(SEED, "train", index)
        pixels = np.full((8, len(room.instance_labels)), SIZE**2 // 10)
        chosen = instructions(room, pixels, SIZE, 1000, room_rng(SEED, "train", index, "actions"))
        found.append((room, pixels, instruction_rows(room, chosen)))
    return found


def test_instructions_fit_the_schema(instructed):
    families = Counter(family_of(row) for _, _, rows in instructed for row in rows)
    assert set(families) == {
        "anchor_name",
        "anchor_color",
        "anchor_neighbour",
        "anchor_camera",
        "anchor_wall",
        "anchors_kind",
        "anchors_color",
    }
    for _, _, rows in instructed:
        for row in rows:
            validate_sample(row)
            assert not {target["label"] for target in row["targets"]} & {"floor", "ceiling", "rug"}


def test_instructions_name_one_target(instructed):
    for room, _, rows in instructed:
        for row in rows:
            family, label = family_of(row), row["targets"][0]["label"]
            alike = [item for item in room.objects if item.label == label]
            if family == "anchor_name":
                assert len(alike) == 1
            elif family == "anchor_color":
                color = next(c for c in row["question"].split() if c in CATALOGUE[label].palette)
                assert [item.color for item in alike].count(color) == 1
            elif family == "anchors_kind":
                assert len(row["targets"]) == len(alike) > 1
            elif family == "anchor_camera":
                camera = room.world_from_cam[room.frame_ids.index(row["anchor_frame_id"])][:3, 3]
                near = np.linalg.norm(np.array([room.object_target(i)["center"] for i in alike]) - camera, axis=1)
                assert np.linalg.norm(np.array(row["targets"][0]["center"]) - camera) == pytest.approx(near.min())
                assert np.sort(near)[1] - near.min() > 0.4


def test_named_walls_hold_the_thing_that_names_them(instructed):
    checked = 0
    for room, _, rows in instructed:
        for row in rows:
            match = re.search(r"the wall (with|behind|opposite) the (.+?)(?: with an anchor)?\.", row["question"])
            if match is None:
                continue
            (thing,) = world_boxes(room, LABELS[match[2]])
            wall = row["targets"][0]
            local = np.array(wall["axes"]) @ (np.array(thing["center"]) - wall["center"])
            if match[1] == "opposite":
                assert local[1] > 1.5
            else:
                assert 0 < local[1] < 1.2 and abs(local[0]) < wall["size"][0] / 2
            checked += 1
    assert checked > 30


def test_unseen_things_are_not_anchored(instructed):
    room, pixels, _ = instructed[0]
    pixels = pixels.copy()
    pixels[:, 1:] = 1
    assert instructions(room, pixels, SIZE, 100, np.random.default_rng(0)) == []


@pytest.mark.parametrize("answer", ["0", "6", "7", "12", "13"])
def test_every_count_has_an_answer(answer):
    """One room in some thousands holds seven chairs of a colour."""
    assert accepted_answers(answer)[0] == answer
    assert len(accepted_answers(answer)) == (2 if int(answer) <= 12 else 1)
