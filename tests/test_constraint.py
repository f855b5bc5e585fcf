"""Constrained decoding: the grammar is the canonical text, whoever chooses the tokens."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import unicodedata
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import eval as evaluator
from processing import constraint_vggt_qwen3
from processing.action_vggt_qwen3 import (
    ACTION_SCHEMA,
    ActionError,
    action_anchors,
    action_from_targets,
    format_action,
    parse_action,
)
from processing.constraint_vggt_qwen3 import ActionConstraint
from processing.geometry_vggt_qwen3 import ref_from_world, transform_points
from tests.conftest import REPOSITORY
from tests.evaluating import save_checkpoint
from tests.frames import turn_and_move
from tests.qwen import write_tokenizer
from training.assembly import load_model
from training.data import SceneDataset

pytestmark = pytest.mark.xdist_group("constraint")  # what the module makes once is dear

VALIDATOR = jsonschema.Draft202012Validator(ACTION_SCHEMA)
CHAIR = (
    '{"action":"place_anchor","label":"office chair","center":[1.25,2.00,-0.40],"extent":[0.50,0.60,0.90],'
    '"normal":[0.00,-1.00,0.00]}'
)
PROMPTS = ("Place an anchor on the door.", "Place anchors on all of the chairs in this room.", "Mark the bed.")


def numbers(low: float, high: float):
    return st.floats(low, high, allow_nan=False)


def unit(angle: float, length: float) -> list[float]:
    return [max(-1.0, min(1.0, length * part)) for part in (math.cos(angle), math.sin(angle))] + [0.0]


LABELS = st.one_of(
    st.sampled_from(["chair", "floor lamp", "TV", "a},{b", "№ 7", "椅子", "x" * 48, "a:", "-1.00]", "🪑"]),
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='"\\'), min_size=1, max_size=48),
).filter(lambda text: text[0] != " " and text[-1] != " ")
ANCHORS = st.fixed_dictionaries(
    {
        "label": LABELS,
        "center": st.lists(numbers(-99.99, 99.99), min_size=3, max_size=3),
        "extent": st.lists(numbers(0, 99.99), min_size=3, max_size=3),
        "normal": st.builds(unit, numbers(-4, 4), numbers(0.92, 1.08)),
    }
)
ACTIONS = st.one_of(
    st.builds(lambda anchor: {"action": "place_anchor", **anchor}, ANCHORS),
    st.builds(
        lambda anchors: {"action": "place_anchors", "anchors": anchors}, st.lists(ANCHORS, min_size=1, max_size=12)
    ),
)


@pytest.fixture(scope="module")
def constraints(tmp_path_factory) -> dict[str, ActionConstraint]:
    folder = tmp_path_factory.mktemp("qwen")
    write_tokenizer(folder)
    folders = {"tiny": REPOSITORY / "configs" / "tokenizer-tiny", "qwen": folder}
    return {name: ActionConstraint(AutoTokenizer.from_pretrained(path)) for name, path in folders.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def untrained(checkpoint):
    """(model, processor)"""
    model, processor = load_model(str(checkpoint), str(checkpoint))
    return model.eval(), processor


def tokens_of(constraint: ActionConstraint, text: str) -> list[int]:
    return constraint.tokenizer(text)["input_ids"]


def accepts(constraint: ActionConstraint, text: str) -> bool:
    """Whether the text may be written token by token, and may end there."""
    constraint.start(1)
    for token in [*tokens_of(constraint, text), constraint.end_of_turn_id]:
        if not constraint.packed_mask()[0, token // 8] >> (token % 8) & 1:
            return False
        constraint.accept([token])
    return constraint.is_done(0)


def list_of(num_anchors: int) -> str:
    anchor = "{" + CHAIR.partition(",")[2]
    return f'{{"action":"place_anchors","anchors":[{",".join([anchor] * num_anchors)}]}}'


def is_canonical(text: str) -> bool:
    try:
        return format_action(parse_action(text)) == text
    except ActionError:
        return False


def ask(untrained, constraint: ActionConstraint, prompts, **options) -> list[str]:
    model, processor = untrained
    chats = [processor.conversation(prompt, task="actions") for prompt in prompts]
    texts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    inputs = processor(text=texts)
    ends = {"eos_token_id": processor.end_of_turn_id, "pad_token_id": processor.tokenizer.pad_token_id}
    output = model.generate(**inputs, logits_processor=[constraint], **ends, **{"max_new_tokens": 4000, **options})
    return processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def check_samples(untrained, num_samples: int, batch: int = 20) -> None:
    """Samples at temperature 2 from all tokens: each is the canonical text of an action that fits the schema."""
    torch.manual_seed(0)
    constraint = untrained[1].action_constraint()
    names = set()
    for start in range(0, num_samples, batch):
        prompts = [PROMPTS[index % len(PROMPTS)] for index in range(start, start + batch)]
        for text in ask(untrained, constraint, prompts, do_sample=True, temperature=2.0, top_k=0):
            assert is_canonical(text), text
            VALIDATOR.validate(json.loads(text))
            names.add(json.loads(text)["action"])
    assert names == {"place_anchor", "place_anchors"}


def test_an_untrained_model_writes_actions(untrained):
    check_samples(untrained, 60)


@pytest.mark.slow
def test_an_untrained_model_writes_actions_a_thousand_times(untrained):
    check_samples(untrained, 1000, batch=50)


@pytest.mark.parametrize("name", ["tiny", "qwen"])
def test_every_canonical_text_is_accepted_as_it_is_tokenized(name, constraints):
    constraint = constraints[name]
    special = set(constraint.tokenizer.all_special_ids)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(ACTIONS)
    def check(action):
        text = format_action(action)
        assert is_canonical(text)
        if special.isdisjoint(tokens_of(constraint, text)):
            assert accepts(constraint, text)

    check()


def test_edited_texts_are_refused_unless_they_are_canonical_again(constraints):
    """One character of a canonical text is left out, doubled or replaced, anywhere."""

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.data())
    def check(data):
        text = format_action({"action": "place_anchor", **data.draw(ANCHORS)})
        place = data.draw(st.integers(0, len(text) - 1))
        new = data.draw(st.sampled_from(["", text[place] * 2, *'0129-.,"]}[{ ax', "\x00", "\n"]))
        edited = unicodedata.normalize("NFC", text[:place] + new + text[place + 1 :])
        assert accepts(constraints["tiny"], edited) == is_canonical(edited), edited

    check()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.00", "-0.00"),
        ("2.00", "2.0"),
        ("2.00", "2.000"),
        ("2.00", "02.00"),
        ("2.00", "100.00"),
        ("0.50,", "-0.50,"),
        (",0.00]}", ",0.01]}"),
        ("[0.00,-1.00,", "[0.10,-0.70,"),
        ("[0.00,-1.00,", "[0.90,-0.90,"),
        ('"label":"office chair",', ""),
        ('"label":"office chair"', '"label":""'),
        ('"label":"office chair"', '"label":" chair"'),
        ('"label":"office chair"', f'"label":"{"a" * 49}"'),
        ('"label":"office chair"', '"label":"a\\nb"'),
        ('"action":"place_anchor",', '"action":"place_anchor","scene":"a",'),
        (":", ": "),
        ("}", "} "),
        ("}", ""),
        ("place_anchor", "remove_anchor"),
        (CHAIR, f"[{CHAIR}]"),
        (CHAIR, "on the chair"),
        (CHAIR, ""),
    ],
)
def test_other_texts_are_refused(old, new, constraints):
    assert accepts(constraints["qwen"], CHAIR)
    assert not any(accepts(constraint, CHAIR.replace(old, new)) for constraint in constraints.values())


@pytest.mark.parametrize("name", ["tiny", "qwen"])
def test_forced_tokens_are_those_that_the_mask_leaves(name, constraints):
    """On random walks: each of a run is the only one allowed; together they lead where they lead one by one."""
    rng = np.random.default_rng(0)
    constraint = constraints[name]
    forced_tokens = 0
    for _ in range(6):
        constraint.start(1)
        while not constraint.is_done(0):
            (run,) = constraint.forced()
            for token in run:
                assert constraint.mask()[0].nonzero().flatten().tolist() == [token]
                constraint.accept([token])
            forced_tokens += len(run)
            if not constraint.is_done(0):
                constraint.accept([int(rng.choice(constraint.mask()[0].nonzero().flatten().numpy()))])
    assert forced_tokens > 100


@pytest.mark.parametrize("name", ["tiny", "qwen"])
def test_forced_runs_are_the_tokens_of_training_and_spare_passes(name, constraints):
    """Along canonical texts; a run may be taken at once."""
    constraint = constraints[name]
    for count, most in ((1, 0.7), (12, 0.7)):
        text = CHAIR if count == 1 else list_of(count)
        tokens = [*tokens_of(constraint, text), constraint.end_of_turn_id]
        constraint.start(1)
        place = choices = 0
        while place < len(tokens):
            (run,) = constraint.forced()
            assert run == tokens[place : place + len(run)]
            choices += not run
            run = run or tokens[place : place + 1]
            constraint.accept([run])
            place += len(run)
        assert constraint.is_done(0)
        assert choices <= most * len(tokens)


@pytest.mark.parametrize("name", ["tiny", "qwen"])
def test_a_digit_is_a_token(name, constraints):
    """Numbers of neighbouring sizes differ in one token, and no token commits to two digits at once."""
    pieces = [constraints[name].tokenizer.decode([token]) for token in tokens_of(constraints[name], CHAIR)]
    assert all(piece.isdigit() <= (len(piece) == 1) for piece in pieces)
    assert "".join(pieces) == CHAIR
    assert not any(any(map(str.isdigit, piece)) and len(piece) > 1 for piece in pieces)


def test_a_list_holds_twelve_anchors_at_most(constraints):
    constraint = constraints["tiny"]
    assert [accepts(constraint, list_of(count)) for count in (0, 1, 11, 12, 13)] == [False, True, True, True, False]


def test_actions_and_labels_can_be_limited(untrained):
    torch.manual_seed(0)
    _, processor = untrained
    labels = ["door", "office chair", "Tür/№ 1"]
    constraint = processor.action_constraint(actions=["place_anchors"], labels=labels)
    found = set()
    for text in ask(untrained, constraint, PROMPTS * 3, do_sample=True, temperature=2.0, top_k=0):
        action = parse_action(text)
        assert format_action(action) == text and action["action"] == "place_anchors"
        found |= {anchor["label"] for anchor in action["anchors"]}
    assert found == set(labels)
    assert accepts(processor.action_constraint(actions=("place_anchor",), labels=["office chair"]), CHAIR)
    assert not accepts(processor.action_constraint(labels=["chair"]), CHAIR)
    assert not accepts(processor.action_constraint(actions=["place_anchors"]), CHAIR)


def test_no_choice_of_tokens_passes_the_limit(constraints):
    """Whoever chooses makes it long: labels of single bytes, and another anchor wherever one is allowed."""
    rng = np.random.default_rng(0)
    tokenizer, limit = constraints["tiny"].tokenizer, 700
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))  # a letter a byte
    constraint = ActionConstraint(tokenizer, actions=["place_anchors"], max_new_tokens=limit)
    assert limit >= 2 * constraint.max_anchor_tokens
    for _ in range(4):
        constraint.start(1)
        tokens: list[int] = []
        while not constraint.is_done(0):
            allowed = constraint.mask()[0].nonzero().flatten().tolist()
            goes_on = [token for token in allowed if "}]" not in names[token] and names[token][0] != "]"] or allowed
            goes_on = [token for token in allowed if "}," in names[token]] or goes_on
            bytewise = [token for token in goes_on if len(names[token]) == 1 and names[token] > "~"]
            tokens.append(int(rng.choice(bytewise or goes_on)))
            constraint.accept([tokens[-1]])
        text = tokenizer.decode(tokens[:-1])
        assert len(tokens) <= limit and is_canonical(text) and constraint.is_shortened(0)
        assert len(parse_action(text)["anchors"]) > 1


def test_a_tight_limit_leaves_room_for_lists_and_says_when_it_ends_them(constraints):
    """160 tokens: two anchors of the usual length; a `place_anchor` is never called shortened."""
    constraint = ActionConstraint(constraints["tiny"].tokenizer, max_new_tokens=160)
    assert [accepts(constraint, list_of(count)) for count in (1, 2, 3)] == [True, True, False]
    for text, shortened in ((list_of(2), True), (list_of(1), False), (CHAIR, False)):
        assert accepts(constraint, text) and constraint.is_shortened(0) is shortened


def test_a_tokenizer_is_prepared_once(constraints, monkeypatch):
    tokenizer = constraints["tiny"].tokenizer
    prepared = []
    monkeypatch.setattr(constraint_vggt_qwen3, "from_tokenizer", lambda *_, **__: prepared.append(1))
    assert accepts(ActionConstraint(tokenizer, labels=["office chair"]), CHAIR)
    assert not prepared


def test_rows_of_a_batch_do_not_know_of_each_other(untrained):
    constraint = untrained[1].action_constraint()
    together = ask(untrained, constraint, PROMPTS, do_sample=False)
    assert [ask(untrained, constraint, [prompt], do_sample=False)[0] for prompt in PROMPTS] == together
    assert all(map(is_canonical, together))


def test_one_object_serves_one_call_after_another(untrained):
    constraint = untrained[1].action_constraint()
    first = ask(untrained, constraint, PROMPTS[:2], do_sample=False)
    ask(untrained, constraint, PROMPTS[:2], do_sample=False, max_new_tokens=20)  # cut off, then the same prompt again
    assert ask(untrained, constraint, PROMPTS[:2], do_sample=False) == first
    assert ask(untrained, constraint, PROMPTS[2:], do_sample=False) == ask(
        untrained, untrained[1].action_constraint(), PROMPTS[2:], do_sample=False
    )


def test_a_next_turn_is_a_new_prompt(untrained):
    """The second prompt begins with all of the first and its answer."""
    model, processor = untrained
    constraint = processor.action_constraint(actions=["place_anchor"])
    messages = processor.conversation(PROMPTS[0], task="actions")
    ends = {"eos_token_id": processor.end_of_turn_id, "pad_token_id": processor.tokenizer.pad_token_id}
    for _ in range(3):
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text])
        output = model.generate(**inputs, logits_processor=[constraint], max_new_tokens=400, do_sample=False, **ends)
        answer = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert is_canonical(answer)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And the other one?"}]


def test_beams_are_followed(untrained):
    constraint = untrained[1].action_constraint()
    texts = ask(untrained, constraint, PROMPTS, num_beams=4, num_return_sequences=3, do_sample=False)
    assert len(texts) == 9 and all(map(is_canonical, texts))
    with pytest.raises(ValueError, match="which the mask did not allow"):  # the library draws from no probability
        ask(untrained, constraint, PROMPTS, num_beams=4, do_sample=True, top_k=0)


def test_masks_fit_the_model(constraints):
    constraint = constraints["tiny"]
    constraint.start(3)
    mask = constraint.mask(vocab_size=2000)
    assert mask.shape == (3, 2000) and mask.dtype == torch.bool and not mask[:, 1536:].any() and mask.any(dim=1).all()
    out = torch.ones(3, 1536, dtype=torch.uint8)
    assert constraint.mask(out=out) is out and torch.equal(out.bool(), mask[:, :1536])
    packed = np.unpackbits(constraint.packed_mask().numpy(), axis=1, bitorder="little")
    assert np.array_equal(packed[:, :1536], out)
    constraint.accept([tokens_of(constraint, CHAIR), [], tokens_of(constraint, CHAIR)[:5]])
    assert constraint.mask()[0].nonzero().tolist() == [[constraint.end_of_turn_id]]
    constraint.accept([constraint.end_of_turn_id, [], []])
    constraint.accept([[constraint.tokenizer.pad_token_id], [], []])  # what stands after the end is nobody's business
    assert [constraint.is_done(row) for row in range(3)] == [True, False, False]
    assert constraint.mask()[0].nonzero().tolist() == [[constraint.end_of_turn_id]] and constraint.forced()[0] == []
    constraint.reset()
    assert constraint.num_rows == 3 and not constraint.is_done(0)


def test_what_does_not_fit_is_refused(constraints, untrained):
    constraint = constraints["tiny"]
    constraint.start(2)
    chair, end = tokens_of(constraint, CHAIR), constraint.end_of_turn_id
    with pytest.raises(ValueError, match=r"row 1 took 'chair' after '', which the mask did not allow"):
        constraint.accept([[], tokens_of(constraint, "chair")])
    with pytest.raises(ValueError, match=r"""row 0 took '<\|im_end\|>' after '{"action":""" + '"place'):
        constraint.accept([[*chair[:4], end], []])
    with pytest.raises(ValueError, match="row_tokens holds 1 rows, wanted 2"):
        constraint.accept([[]])
    with pytest.raises(ValueError, match="vocab_size is 64, wanted the tokenizer's 1536 at least"):
        constraint.mask(vocab_size=64)
    with pytest.raises(ValueError, match="out has 1 rows, wanted 2"):
        constraint.mask(out=torch.zeros(1, 1536, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_rows is 0"):
        constraint.start(0)
    processor = untrained[1]
    for options, reason in (
        ({"actions": ["remove"]}, r"actions is \['remove'\], wanted some of place_anchor, place_anchors"),
        ({"actions": []}, r"actions is \[\], wanted some of"),
        ({"actions": "place_anchor"}, "actions is 'place_anchor', wanted some of"),
        ({"labels": []}, r"labels is \[\], wanted a list of labels"),
        ({"labels": "chair"}, "labels is 'chair', wanted a list of labels"),
        ({"labels": ["chair", 'a"b']}, r"labels\[1\] is 'a\"b', wanted no quote"),
    ):
        with pytest.raises(ValueError, match=reason):
            processor.action_constraint(**options)


def test_a_loop_that_ignores_the_mask_is_told(untrained):
    _, processor = untrained
    constraint = processor.action_constraint()
    ids = torch.tensor([[5, 6, 7]])
    constraint(ids, torch.zeros(1, 1536))
    with pytest.raises(ValueError, match="which the mask did not allow"):
        constraint(torch.tensor([[5, 6, 7, 8]]), torch.zeros(1, 1536))


def test_without_the_library_only_a_constraint_is_refused(checkpoint, rooms, tmp_path):
    """In a process that cannot import it: loading and asking go on, who wants a constraint is told the ways out."""
    script = f"""
import sys
sys.modules["llguidance"] = None
import eval as evaluator
from processing import VggtQwen3Processor
processor = VggtQwen3Processor.from_pretrained({str(checkpoint)!r})
assert processor(text=["where?"])["input_ids"].shape[0] == 1
try:
    processor.action_constraint()
except ImportError as error:
    print("refused:", error)
run = ["--model", {str(checkpoint)!r}, "--dataset", {str(rooms)!r}, "--task", "rooms_actions", "--limit", "1",
       "--num-views", "2", "--max-new-tokens", "3", "--num-resamples", "0", "--output", {str(tmp_path / "out")!r}]
try:
    evaluator.main(run)
except ValueError as error:
    print("refused:", error)
evaluator.main([*run, "--no-constrain-actions"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert len(refused) == 2 and all('pip install "llguidance>=1.9,<2"' in line for line in refused)
    assert "--no-constrain-actions" in refused[1]
    assert (tmp_path / "out" / "predictions.jsonl").is_file()


def test_an_evaluation_gets_actions_and_says_so(checkpoint, rooms, tmp_path):
    run = ["--model", str(checkpoint), "--dataset", str(rooms), "--task", "rooms_actions", "--limit", "6"]
    run += ["--num-views", "2", "--num-resamples", "0", "--max-new-tokens", "400", "--output", str(tmp_path)]
    evaluator.main(run)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        assert row["error"] is None and row["action"]["scene"] == row["scene_id"]
        assert is_canonical(row["prediction"])
    assert yaml.safe_load((tmp_path / "run_config.yaml").read_text())["predictions"]["constrain_actions"] is True
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["predictions"]["constrain_actions"] is True
    assert "could answer with nothing but actions" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="constrain_actions was True, is False"):
        evaluator.main([*run, "--no-constrain-actions"])


def test_turning_and_moving_the_world_moves_the_answers_and_nothing_else(rooms, untrained):
    """From a room of the dataset through processor, model and `decode_actions`: what the model sees and says stays."""
    model, processor = untrained
    dataset = SceneDataset([rooms], "val", 3, ["rooms_actions"])
    constraint = processor.action_constraint()
    rng = np.random.default_rng(0)
    for draw in dataset.fixed_draws(1)[:3]:
        example = dataset[draw]
        here = np.asarray(example.world_from_cam, dtype=np.float64)
        there_from_here = turn_and_move(rng.uniform(-3, 3), rng.uniform(-50, 50, 3))
        says, batches = [], []
        for cameras in (here, there_from_here @ here):
            chat = processor.conversation(example.samples[0]["question"], num_views=3, task="rooms_actions")
            batch = processor(
                images=[example.images],
                text=[processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)],
                intrinsics=[example.intrinsics],
                world_from_cam=[cameras],
                depth=[example.depth],
            )
            output = model.generate(
                **batch, logits_processor=[constraint], max_new_tokens=600, do_sample=False,
                eos_token_id=processor.end_of_turn_id, pad_token_id=processor.tokenizer.pad_token_id,
            )  # fmt: skip
            answer = output[:, batch["input_ids"].shape[1] :]
            says += processor.tokenizer.batch_decode(answer, skip_special_tokens=True)
            batches.append(batch)
        old, new = batches
        for key in old:
            if key != "world_from_ref":
                assert torch.allclose(old[key].double(), new[key].double(), atol=2e-5), key
        assert says[0] == says[1]
        before, after = (processor.decode_actions(says[0], batch["world_from_ref"])[0]["action"] for batch in batches)
        _moved_exactly(before, after, there_from_here)
        _target_stays_in_ref(example.samples[0], here[0], there_from_here)


def _moved_exactly(before: dict, after: dict, there_from_here: np.ndarray) -> None:
    """To one millimetre, and a turn of less than a thousandth."""
    pairs = list(zip(action_anchors(before), action_anchors(after), strict=True))
    assert pairs
    for old, new in pairs:
        assert np.abs(transform_points(there_from_here, old["center"]) - new["center"]).max() < 1e-3
        assert np.allclose(there_from_here[:3, :3] @ old["normal"], new["normal"], atol=1e-3)
        assert (old["label"], old["extent"]) == (new["label"], new["extent"])


def _target_stays_in_ref(sample: dict, world_from_cam: np.ndarray, there_from_here: np.ndarray) -> None:
    """What training asks for is the same text, wherever the world lies."""
    moved = [
        {
            **target,
            "center": transform_points(there_from_here, target["center"]).tolist(),
            "axes": (np.asarray(target["axes"]) @ there_from_here[:3, :3].T).tolist(),
        }
        for target in sample["targets"]
    ]
    here = action_from_targets(sample["action"], sample["targets"], ref_from_world(world_from_cam))
    there = action_from_targets(sample["action"], moved, ref_from_world(there_from_here @ world_from_cam))
    assert format_action(here) == format_action(there)
