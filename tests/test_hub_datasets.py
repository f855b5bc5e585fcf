"""Publishing a built dataset: Parquet, its card, the gate of licences, and back again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from datasets import Dataset

from datasets_scripts.schema import QA_TASKS, NotADatasetError, read_manifest, write_manifest
from hub_upload import fetch as fetch_module
from hub_upload.licences import DATA_SOURCES, find_sources, publishable_licence
from hub_upload.record import read_staged
from hub_upload.stage import parse
from hub_upload.stage_dataset import DatasetSettings, stage_dataset
from hub_upload.verify import NotPublishableError, static_faults, verify
from tests.hub import append, copy_staged, record_again, run_module
from tests.hub_server import TOKEN, running_hub
from training.data import SceneDataset

pytestmark = pytest.mark.xdist_group("hub")
REPO_ID = "someone/rooms-data"


@pytest.fixture(scope="module")
def staged(tmp_path_factory, rooms) -> Path:
    folder = tmp_path_factory.mktemp("data") / "stage"
    stage_dataset(DatasetSettings(rooms, folder, REPO_ID))
    return folder


def dataset_of(source: str, root: Path, task: str = "actions") -> Path:
    """A built dataset of one scene of another source."""
    scene = {"scene_id": "a", "source": source}
    Dataset.from_list([scene]).save_to_disk(str(root / "scenes" / "train"))
    Dataset.from_list([{"sample_id": "a/1", "task": task}]).save_to_disk(str(root / "samples" / "train"))
    write_manifest(root, counts={"scenes": {"train": {source: 1}}}, options={source: {}}, source_files={})
    return root


def test_published_and_fetched_it_is_the_same_dataset(staged, rooms, tmp_path):
    """By the commands that users type, through the real client."""
    with running_hub() as hub:
        places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        places |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1,localhost"}
        data = tmp_path / "data"
        for words in (
            ["hub_upload.verify", str(staged)],
            ["hub_upload.push", str(staged), "--repo-id", REPO_ID, "--tag", "v1"],
            ["hub_upload.fetch", REPO_ID, "--output", str(data), "--revision", "v1"],
        ):
            result = run_module("-m", *words, **places)
            assert result.returncode == 0, result.stderr
        assert hub.repos["dataset", REPO_ID].private
        assert set(hub.files(REPO_ID, "v1", "dataset")) == {*read_staged(staged).files, ".gitattributes"}
    assert read_manifest(data).counts == read_manifest(rooms).counts
    for split in ("train", "val", "test"):
        ours, theirs = (SceneDataset([root], split, 3) for root in (rooms, data))
        assert [ours.sample(i) for i in range(len(ours))] == [theirs.sample(i) for i in range(len(theirs))]
        first, second = ours.read_scene(0), theirs.read_scene(0)
        assert [a.tobytes() for a in first.images] == [b.tobytes() for b in second.images]
        assert all((a == b).all() for a, b in zip(first.depth, second.depth, strict=True))
        assert (first.world_from_cam == second.world_from_cam).all()


def test_the_card_says_what_is_in_it(staged):
    text = (staged / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert f'load_dataset("{REPO_ID}", "samples")' in text
    assert "| samples | train | 128 |" in text
    assert "path: data/scenes/heldout-*.parquet" in text
    assert static_faults(staged, read_staged(staged)) == []


@pytest.mark.parametrize("source", ["scannet", "arkitscenes", "legacy", "roomplan", "photos"])
def test_sources_that_may_not_be_passed_on_are_refused_by_name(source, tmp_path):
    with pytest.raises(ValueError, match=rf"may not be published\. {source}: "):
        stage_dataset(DatasetSettings(dataset_of(source, tmp_path / "data"), tmp_path / "out", REPO_ID))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["scanqa", "sqa3d"])
def test_questions_on_foreign_photographs_are_refused(task, tmp_path):
    root = dataset_of("rooms", tmp_path / "data", task)
    with pytest.raises(ValueError, match=rf"{task}: its questions are .*ScanNet's"):
        stage_dataset(DatasetSettings(root, tmp_path / "out", REPO_ID))


def test_own_captures_need_the_owners_word(tmp_path):
    root = dataset_of("roomplan", tmp_path / "data")
    words = ["--type", "dataset", "--dataset", str(root), "--output", str(tmp_path / "out"), "--repo-id", REPO_ID]
    staged = stage_dataset(parse([*words, "--own-data", "cc-by-4.0"]))
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    assert static_faults(tmp_path / "out", staged) == []
    with pytest.raises(ValueError, match="scannet: "):
        publishable_licence(["scannet", "roomplan"], own_data="cc-by-4.0")
    with pytest.raises(ValueError, match="different licences"):
        publishable_licence(["rooms", "roomplan"], own_data="cc-by-4.0")


def test_every_source_of_the_project_is_known():
    assert {"scannet", "arkitscenes", "legacy", "roomplan", "planes", "photos", "rooms"} <= set(DATA_SOURCES)
    assert set(QA_TASKS) - {"rooms_qa"} <= set(DATA_SOURCES)
    with pytest.raises(ValueError, match="the data source elsewhere are not known"):
        find_sources(["elsewhere"])


def rewrite(path: Path, column: str, value: str) -> None:
    table = parquet.read_table(path)
    place = table.column_names.index(column)
    parquet.write_table(table.set_column(place, column, [[value] * len(table)]), path)


@pytest.mark.parametrize(
    ("plant", "wanted"),
    [
        (
            lambda f: rewrite(next(f.glob("data/scenes/train*")), "source", "scannet"),
            "rows come from scannet, which may",
        ),
        (lambda f: rewrite(next(f.glob("data/samples/val*")), "task", "scanqa"), "rows come from scanqa, which may"),
        (lambda f: rewrite(next(f.glob("data/scenes/train*")), "source", "x"), "rows come from x, whose terms"),
        (
            lambda f: rewrite(next(f.glob("data/scenes/train*")), "source", "photos"),
            "rows come from photos, which may not be published: whose photographs these are",
        ),
        (lambda f: next(f.glob("data/scenes/train*")).write_bytes(b"PAR1"), "is not a table of scenes"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "README.md: its metadata is not YAML"),
        (lambda f: (f / "rows.pkl").write_bytes(b"\x80\x04."), "rows.pkl is a pickle"),
        (lambda f: (f / "data" / "scenes.arrow").touch(), "data/scenes.arrow has no place"),
        (lambda f: (f / "README.md").unlink(), "README.md is missing"),
        (lambda f: append(f / "manifest.json", ' "/home/someone/rooms" '), "manifest.json holds a path"),
    ],
)
def test_faults_of_a_dataset(plant, wanted, staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    plant(folder)
    record_again(folder)
    with pytest.raises(NotPublishableError) as caught:
        verify(folder)
    assert wanted in str(caught.value)


def test_rows_that_are_lost_are_missed(staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    path = next(folder.glob("data/samples/test*"))
    parquet.write_table(parquet.read_table(path).slice(1), path)
    record_again(folder)
    with pytest.raises(NotPublishableError, match="samples/test has 31 rows, 32 were staged"):
        verify(folder)


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(NotADatasetError):
        stage_dataset(DatasetSettings(tmp_path, tmp_path / "out", REPO_ID))


def test_fetching_what_is_damaged(staged, tmp_path, monkeypatch):
    folder = copy_staged(staged, tmp_path)
    monkeypatch.setattr(fetch_module, "snapshot_download", lambda *args, **kwargs: str(folder))
    path = next(folder.glob("data/samples/test*"))
    parquet.write_table(parquet.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match="samples/test has 31 rows, the manifest counts 32"):
        fetch_module.fetch(REPO_ID, tmp_path / "data")
    assert not (tmp_path / "data").exists()  # so that the same command can be given again
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json: it is no dataset"):
        fetch_module.fetch(REPO_ID, tmp_path / "other")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        fetch_module.fetch(REPO_ID, folder)
