"""Publishing to a small Hub on 127.0.0.1 through the real client, also where the Hub or the network fails."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from evaluation.arguments import parse as parse_evaluation
from evaluation.conditions import SIGHTED
from evaluation.settings import run_config
from hub_upload import push as push_module
from hub_upload.cards import eval_command
from hub_upload.check_card import FRONT_MATTER
from hub_upload.elsewhere import SUPPORTED, install_transformers
from hub_upload.push import PushError, PushSettings, push
from hub_upload.record import NotStagedError, read_staged, record_folder, write_verified
from hub_upload.stage_model import ModelSettings, stage_model
from hub_upload.verify import static_faults
from tests.hub import REPO_ID, append, copy_staged, record_again, run_module, stage_small
from tests.hub_server import READ_ONLY_TOKEN, TOKEN, Hub, running_hub
from training.data import SceneDataset

pytestmark = pytest.mark.xdist_group("hub")
KEY = ("model", REPO_ID)

ANSWER = """
import json, sys
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

repo, folder, tag = sys.argv[1:]
model = AutoModel.from_pretrained(repo, trust_remote_code=True).eval()
tagged = AutoModel.from_pretrained(repo, trust_remote_code=True, revision=tag)
assert torch.equal(model.lm_head.weight, tagged.lm_head.weight)
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
answers = {}
for asked in json.load(open(f"{folder}/asked.json")):
    data = np.load(f"{folder}/{asked['views']}")
    words = {"situation": asked["situation"], "task": asked["task"]}
    messages = processor.conversation(asked["question"], num_views=len(data["views"]), **words)
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    cameras = {key: [data[key]] for key in ("intrinsics", "world_from_cam", "depth")}
    inputs = processor(images=[list(data["views"])], text=[prompt], **cameras)
    limit = {"max_new_tokens": NUM_TOKENS}
    constraint = processor.action_constraint(**limit) if "actions" in asked["task"] else None
    tokens = model.generate(**inputs, do_sample=False, constraint=constraint, **limit)
    text = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0]
    answers[asked["sample_id"]] = text.strip()
print(json.dumps({"answers": answers, "code": type(model).__module__}))
"""
NUM_TOKENS = 100
"""Enough for an action of the small model."""


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    """Staged in several weight files and marked as verified, for tests of what comes after."""
    folder = stage_small(tmp_path_factory.mktemp("push"), max_shard_size="500KB")
    write_verified(folder, read_staged(folder), [])
    return folder


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


def environment(hub: Hub, home: Path, token: str = TOKEN) -> dict[str, str]:
    """Of a process that knows only this Hub."""
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return {**places, "HF_TOKEN": token, "NO_PROXY": "127.0.0.1,localhost"}


@pytest.fixture
def api(hub, monkeypatch, tmp_path):
    """The real client, pointed at the small Hub; waits are not sat out."""
    from huggingface_hub import constants

    monkeypatch.setattr(push_module, "WAITS_S", (0, 0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return lambda token=TOKEN: HfApi(endpoint=hub.url, token=token)


def test_publishes_privately_in_one_commit_and_tags_it(staged, hub, api):
    published = push(PushSettings(staged, REPO_ID), api())
    repo = hub.repos[KEY]
    assert repo.private
    assert len(repo.commits) == 2  # the empty one that creates a repository, and ours
    assert repo.tags == {published.tag: published.commit}
    assert published.url == f"{hub.url}/{REPO_ID}/tree/{published.tag}"
    found = hub.files(REPO_ID, published.tag)
    assert set(found) == {*read_staged(staged).files, ".gitattributes"}
    assert all(found[name] == (staged / name).read_bytes() for name in read_staged(staged).files)
    assert not hub.requests("PUT .*broken")


def test_the_same_again_changes_nothing(staged, hub, api):
    first = push(PushSettings(staged, REPO_ID), api())
    uploads = len(hub.requests("^PUT"))
    second = push(PushSettings(staged, REPO_ID), api())
    assert (second.commit, second.is_new, first.is_new) == (first.commit, False, True)
    assert len(hub.requests("^PUT")) == uploads
    assert len(hub.repos[KEY].commits) == 2


def test_a_new_version_sends_only_what_changed(staged, hub, api, tmp_path):
    push(PushSettings(staged, REPO_ID), api())
    uploads = len(hub.requests("^PUT"))
    folder = copy_staged(staged, tmp_path)
    append(folder / "NOTICE", "One more line.\n")
    write_verified(folder, record_again(folder), [])
    published = push(PushSettings(folder, REPO_ID, tag="v2"), api())
    assert len(hub.requests("^PUT")) == uploads
    assert hub.files(REPO_ID, "v2")["NOTICE"] == (folder / "NOTICE").read_bytes()
    assert len(hub.repos[KEY].commits) == 3
    append(folder / "NOTICE", "Yet another.\n")
    write_verified(folder, record_again(folder), [])
    with pytest.raises(ValueError, match=f"v2 names {published.commit} already: choose another"):
        push(PushSettings(folder, REPO_ID, tag="v2"), api())


def test_only_verified_folders_are_taken(staged, hub, api, tmp_path):
    folder = copy_staged(staged, tmp_path)
    (record_folder(folder) / "verified.json").unlink()
    with pytest.raises(NotStagedError, match="was not verified"):
        push(PushSettings(folder, REPO_ID), api())
    write_verified(folder, read_staged(folder), [])
    append(folder / "README.md", "\nLater.\n")
    with pytest.raises(NotStagedError, match="has changed since"):
        push(PushSettings(folder, REPO_ID), api())
    assert not hub.log


def test_the_repository_must_be_the_one_of_the_card(staged, api):
    with pytest.raises(ValueError, match="says someone/rooms, not someone/else"):
        push(PushSettings(staged, "someone/else"), api())


def test_public_only_when_told(staged, hub, api):
    push(PushSettings(staged, REPO_ID, public=True), api())
    assert not hub.repos[KEY].private
    with pytest.raises(ValueError, match="is public: say --public"):
        push(PushSettings(staged, REPO_ID), api())


def test_files_of_others_are_not_removed_unasked(staged, hub, api, tmp_path):
    api().create_repo(REPO_ID, private=True)
    (tmp_path / "theirs.txt").write_text("theirs")
    api().upload_file(path_or_fileobj=str(tmp_path / "theirs.txt"), path_in_repo="theirs.txt", repo_id=REPO_ID)
    with pytest.raises(ValueError, match=r"\(theirs.txt\): say --replace"):
        push(PushSettings(staged, REPO_ID), api())
    push(PushSettings(staged, REPO_ID, replace=True), api())
    assert "theirs.txt" not in hub.files(REPO_ID)


def test_without_a_token(staged, monkeypatch):
    monkeypatch.setattr(push_module, "get_token", lambda: None)
    with pytest.raises(PushError, match="there is no token"):
        push(PushSettings(staged, REPO_ID))


@pytest.mark.parametrize(
    ("pattern", "status", "words"),
    [
        ("POST /api/repos/create", 401, "does not accept the token"),
        ("POST /api/repos/create", 403, "may not write to someone/rooms"),
        ("POST .*/commit/main", 403, "may not write"),
        ("POST .*/commit/main", 409, "Somebody else changed the repository"),
        ("POST .*/commit/main", 412, "Somebody else changed the repository"),
        ("POST .*/commit/main", 413, "answer stands in the brackets"),
        ("POST /api/repos/create", 429, "again later"),
        ("POST .*/commit/main", 500, "again later"),
        ("POST .*/commit/main", 503, "again later"),
    ],
)
def test_refusals_are_said_in_words_and_publish_nothing(pattern, status, words, staged, hub, api, capsys):
    hub.fail(pattern, status, times=99)
    with pytest.raises(PushError, match=words) as caught:
        push(PushSettings(staged, REPO_ID), api())
    assert f"status {status}" in str(caught.value)
    assert "Nothing was published" in str(caught.value)
    assert TOKEN not in str(caught.value) + "".join(capsys.readouterr())
    assert KEY not in hub.repos or (len(hub.repos[KEY].commits), hub.repos[KEY].tags) == (1, {})


def test_real_tokens_that_may_not(staged, hub, api):
    with pytest.raises(PushError, match="may not write"):
        push(PushSettings(staged, REPO_ID), api(READ_ONLY_TOKEN))
    with pytest.raises(PushError, match="does not accept the token"):
        push(PushSettings(staged, REPO_ID), api("hf_wrong"))


@pytest.mark.parametrize(
    ("pattern", "status"),
    [
        ("GET /api/models/someone/rooms$", 503),
        ("POST /api/repos/create", 429),
        ("POST .*/commit/main", 502),
        ("POST .*/tag/", 500),
        ("GET .*/refs", 504),
    ],
)
def test_a_hub_that_fails_once_is_asked_again(pattern, status, staged, hub, api):
    hub.fail(pattern, status, Retry_After="0")
    published = push(PushSettings(staged, REPO_ID), api())
    assert hub.requests(f"{pattern.rstrip('$')}.* {status}")
    assert hub.repos[KEY].tags == {published.tag: published.commit}


def test_a_tag_that_fails_leaves_the_files_published(staged, hub, api):
    hub.fail("POST .*/tag/", 500, times=99)
    with pytest.raises(PushError, match="The files are published at"):
        push(PushSettings(staged, REPO_ID), api())
    hub.faults.clear()
    published = push(PushSettings(staged, REPO_ID), api())
    assert not published.is_new
    assert hub.repos[KEY].tags == {published.tag: published.commit}


def test_somebody_who_pushes_meanwhile_is_not_overwritten(staged, hub, api, monkeypatch, tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("theirs")
    check = push_module._Repository.files

    def files_and_then_someone_commits(self, *args):
        found = check(self, *args)
        if len(hub.repos[KEY].commits) == 1:
            api().upload_file(path_or_fileobj=str(theirs), path_in_repo="theirs.txt", repo_id=REPO_ID)
        return found

    monkeypatch.setattr(push_module._Repository, "files", files_and_then_someone_commits)
    with pytest.raises(PushError, match="Somebody else changed"):
        push(PushSettings(staged, REPO_ID), api())
    assert set(hub.files(REPO_ID)) == {".gitattributes", "theirs.txt"}


def test_what_arrives_otherwise_than_sent_is_not_tagged(staged, hub, api, monkeypatch):
    commit = push_module._Repository.commit

    def commit_and_spoil(self, *args):
        sha = commit(self, *args)
        files = dict(hub.repos[KEY].at(sha)[1])
        hub.repos[KEY].commits[-1] = (sha, {**files, "NOTICE": files["LICENSE"]})
        return sha

    monkeypatch.setattr(push_module._Repository, "commit", commit_and_spoil)
    with pytest.raises(PushError, match="NOTICE arrived otherwise than verified"):
        push(PushSettings(staged, REPO_ID), api())
    assert not hub.repos[KEY].tags


def test_a_file_that_changes_while_it_is_sent_is_not_tagged(staged, hub, api, monkeypatch, tmp_path):
    folder = copy_staged(staged, tmp_path)
    read = push_module.read_verified

    def read_and_then_someone_edits(path):
        found = read(path)
        append(folder / "NOTICE", "One more line.\n")
        return found

    monkeypatch.setattr(push_module, "read_verified", read_and_then_someone_edits)
    with pytest.raises(PushError, match="NOTICE arrived otherwise than"):
        push(PushSettings(folder, REPO_ID), api())
    assert not hub.repos[KEY].tags


def test_large_files_are_checked_without_being_read_again(staged, hub, api, monkeypatch):
    read_bytes, read = Path.read_bytes, set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path.name) or read_bytes(path))
    push(PushSettings(staged, REPO_ID), api())
    assert "NOTICE" in read
    assert not {name for name in read if name.endswith(".safetensors")}


def test_it_waits_as_long_as_it_says(staged, hub, api, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(push_module.time, "sleep", waited.append)
    hub.fail("POST .*/tag/", 429, Retry_After="7")
    push(PushSettings(staged, REPO_ID), api())
    assert 7 in waited
    assert "again in 7 s" in capsys.readouterr().err


def test_signed_addresses_are_not_shown():
    """Large files go to storage elsewhere, under addresses that let whoever has them write."""
    failure = HTTPError("Client error '403 Forbidden' for url 'https://storage.example/a?Signature=mine&b=c'")
    assert push_module._in_short(403, failure) == (
        "status 403 (Client error '403 Forbidden' for url 'https://storage.example/a?…')"
    )


@pytest.mark.parametrize("has_theirs", [False, True])
def test_a_commit_whose_answer_is_lost_is_found_again(has_theirs, staged, hub, api, monkeypatch, tmp_path):
    if has_theirs:
        (tmp_path / "theirs.txt").write_text("theirs")
        api().create_repo(REPO_ID, private=True)
        api().upload_file(path_or_fileobj=str(tmp_path / "theirs.txt"), path_in_repo="theirs.txt", repo_id=REPO_ID)
    create, lost = HfApi.create_commit, []

    def create_and_lose(self, *args, **kwargs):
        made = create(self, *args, **kwargs)
        if not lost:
            lost.append(made.oid)
            raise HTTPError("the connection was closed")
        return made

    monkeypatch.setattr(HfApi, "create_commit", create_and_lose)
    published = push(PushSettings(staged, REPO_ID, replace=True), api())
    assert [published.commit] == lost
    assert hub.repos[KEY].tags == {published.tag: published.commit}


def test_a_repository_that_the_token_does_not_show(staged, hub, api):
    api().create_repo(REPO_ID, private=True)
    hub.fail("GET /api/models/someone/rooms$", 404, times=99, X_Error_Code="RepoNotFound")
    with pytest.raises(PushError, match=r"is there, but this token does not show it: .* Nothing was published"):
        push(PushSettings(staged, REPO_ID), api())


def test_a_connection_that_is_cut_is_made_again(staged, hub, tmp_path):
    """By a real process; also in parts, as large files are sent."""
    hub.chunk_bytes = 150_000
    hub.cut("PUT /lfs/.*/2$", after_bytes=70_000)
    hub.fail("POST .*/preupload/", 429, Retry_After="0")
    result = run_module("-m", "hub_upload.push", str(staged), "--repo-id", REPO_ID, **environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert hub.requests("PUT .*broken")
    assert hub.files(REPO_ID)["LICENSE"] == (staged / "LICENSE").read_bytes()
    assert TOKEN not in result.stdout + result.stderr


def test_a_killed_upload_goes_on_where_it_was(staged, hub, tmp_path):
    largest = max(staged.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    oid = read_staged(staged).files[largest.name]
    hub.hold(f"PUT /lfs/{oid}", after_bytes=largest.stat().st_size // 2)
    command = [sys.executable, "-m", "hub_upload.push", str(staged), "--repo-id", REPO_ID]
    env = {**os.environ, **environment(hub, tmp_path)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.held.wait(60), hub.log
    others = {path.name for path in staged.glob("*.safetensors")} - {largest.name}
    for _ in range(200):  # the other files go up beside it
        if len(hub.objects) == len(others):
            break
        hub.closing.wait(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(hub.repos[KEY].commits) == 1  # nobody sees half a model
    sent_before = set(hub.objects)

    result = run_module("-m", "hub_upload.push", str(staged), "--repo-id", REPO_ID, **environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in hub.requests(r"^PUT /lfs/\w+ 200")[len(sent_before) :]] == [f"/lfs/{oid}"]
    assert hub.files(REPO_ID)[largest.name] == largest.read_bytes()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, rooms) -> Path:
    """A staged model with its figures, `predictions.jsonl` beside it."""
    folder = tmp_path_factory.mktemp("evaluated")
    stage_small(folder)
    shutil.rmtree(folder / "stage")
    words = ["--model", str(folder / "checkpoint"), "--dataset", str(rooms), "--split", "val", "--limit", "6"]
    words += ["--output", str(folder / "eval"), "--num-views", "3", "--controls", "blind", "--num-resamples", "20"]
    words += ["--batch-size", "4", "--max-new-tokens", str(NUM_TOKENS)]
    result = run_module("eval.py", *words, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    return folder


def write_questions(folder: Path, rooms: Path, rows: list[dict[str, Any]]) -> None:
    """The views, cameras and questions of predictions, as a stranger would have them."""
    asked = []
    for task in {row["task"]: None for row in rows}:
        dataset = SceneDataset([rooms], "val", 3, [task])
        scenes = {dataset.sample(index)["sample_id"]: dataset.samples[index][2] for index in range(len(dataset))}
        for row in (row for row in rows if row["task"] == task):
            example = dataset.read_scene(scenes[row["sample_id"]], row["views"])
            name = f"{len(asked)}.npz"
            np.savez(
                folder / name,
                views=np.stack([np.asarray(image) for image in example.images]),
                intrinsics=example.intrinsics,
                world_from_cam=example.world_from_cam,
                depth=np.stack(example.depth),
            )
            keys = ("sample_id", "task", "question", "situation")
            asked.append({key: row[key] for key in keys} | {"views": name})
    (folder / "asked.json").write_text(json.dumps(asked))


def test_staged_verified_pushed_and_loaded_it_answers_as_eval_does(evaluated, rooms, hub, tmp_path):
    """What a user types, then what a stranger types."""
    stage = evaluated / "stage"
    words = ["--model", str(evaluated / "checkpoint"), "--evaluation", str(evaluated / "eval")]
    words += ["--output", str(stage), "--repo-id", REPO_ID, "--trained-on", "rooms"]
    verify = ["verify", str(stage), "--installed-only"]
    for command in (["stage", *words], verify, ["push", str(stage), "--repo-id", REPO_ID]):
        result = run_module("-m", f"hub_upload.{command[0]}", *command[1:], **environment(hub, tmp_path))
        assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{hub.url}/{REPO_ID}/tree/staged-")
    assert "note: not verified under transformers 5." in result.stderr  # the one that is not installed

    rows = [json.loads(line) for line in (evaluated / "eval" / "predictions.jsonl").read_text().splitlines()]
    write_questions(tmp_path, rooms, rows)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    script = ANSWER.replace("NUM_TOKENS", str(NUM_TOKENS))
    words = [REPO_ID, str(tmp_path), next(iter(hub.repos[KEY].tags))]
    result = run_module("-P", "-c", script, *words, cwd=stranger, **environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["code"].startswith("transformers_modules.someone.rooms.")
    assert answer["answers"] == {row["sample_id"]: row["prediction"] for row in rows}
    assert {row["task"] for row in rows} == {"rooms_qa", "rooms_actions"}
    assert len({row["prediction"] for row in rows}) > len(rows) / 2  # they depend on what is shown and asked


def test_the_command_of_the_card_makes_the_same_evaluation(evaluated):
    """Read again, it decides everything that answers and intervals depend on."""
    settings = yaml.safe_load((evaluated / "eval" / "run_config.yaml").read_text())
    changes = {"num_beams": 3, "constrain_actions": False, "hide_depth": True, "dtype": "bfloat16", "limit": None}
    changes |= {"attn_implementation": "eager", "tasks": ["rooms_qa"], "condition": "single_view"}
    other = {**settings, "predictions": settings["predictions"] | changes}
    other["report"] = settings["report"] | {"protocols": ["official"], "num_resamples": 1000, "seed": 7, "controls": []}
    for wanted in (settings, other):
        words = shlex.split(eval_command(wanted, REPO_ID))
        assert words[:2] == ["python", "eval.py"]
        again = dataclasses.replace(parse_evaluation(words[2:]), dataset=settings["dataset"])
        found = run_config(again, again.deciding(settings["predictions"]["fingerprints"]["model"]))
        assert (found["predictions"], found["report"]) == (wanted["predictions"], wanted["report"])


def test_the_card_tells_the_figures_and_how_to_get_them(evaluated, tmp_path):
    metrics = json.loads((evaluated / "eval" / "metrics.json").read_text())
    model, evaluation = str(evaluated / "checkpoint"), evaluated / "eval"
    settings = ModelSettings(model, tmp_path / "stage", REPO_ID, (evaluation,), trained_on=("rooms",))
    assert static_faults(settings.output, stage_model(settings)) == []
    text = (settings.output / "README.md").read_text()
    (index,) = yaml.safe_load(FRONT_MATTER.match(text)[1])["model-index"]
    found = {
        (result["dataset"]["type"], metric["type"]): metric["value"]
        for result in index["results"]
        for metric in result["metrics"]
    }
    task = metrics["tasks"]["rooms_qa"]
    section = task["results"][SIGHTED]["protocols"][task["headline_protocol"]]["all"]
    assert found["rooms_qa", "EM@1"] == section["scores"]["EM@1"]
    assert ("rooms_actions", "schema_validity") in found
    assert "python eval.py --model someone/rooms --dataset data/rooms --split val --num-views 3 --limit 6" in text
    assert "--controls blind" in text
    assert "split val, 6 samples, protocol" in text
    assert "split val, 6 samples)" in text
    assert "| | sighted | blind |" in text
    assert str(tmp_path.parent) not in text


@pytest.mark.slow
def test_the_oldest_supported_libraries_verify_publish_and_load(staged, hub, tmp_path):
    """transformers 5.17 with huggingface_hub 1.x, which pip fetches once."""
    packages = install_transformers(SUPPORTED[0])
    result = run_module("-m", "hub_upload.verify", str(staged))
    assert result.returncode == 0, result.stderr
    assert all(f"loads under transformers {version}" in result.stdout for version in SUPPORTED)
    assert "AutoImageProcessor is on offer only where torchvision is installed" in result.stdout
    places = {**environment(hub, tmp_path), "PYTHONPATH": str(packages.resolve())}
    hub.cut("PUT /lfs/", after_bytes=1000)
    result = run_module("-m", "hub_upload.push", str(staged), "--repo-id", REPO_ID, **places)
    assert result.returncode == 0, result.stderr
    load = "import sys, huggingface_hub, transformers as t; m = t.AutoModel.from_pretrained(sys.argv[1], "
    load += "trust_remote_code=True); print(huggingface_hub.__version__, t.__version__, type(m).__name__)"
    result = run_module("-c", load, REPO_ID, cwd=tmp_path, **places)
    assert result.returncode == 0, result.stderr
    hub_version, version, name = result.stdout.split()
    assert hub_version.startswith("1.")
    assert (version, name) == ("5.17.0", "VggtQwen3ForConditionalGeneration")
