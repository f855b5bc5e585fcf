"""What verify.py refuses: each fault is planted into a folder that would pass without it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from datasets_scripts.schema import write_manifest
from evaluation.checkpoint import folder_fingerprint
from hub_upload import verify as verify_module
from hub_upload.elsewhere import SUPPORTED, install_transformers, prove
from hub_upload.record import NotStagedError, read_staged, read_verified, write_verified
from hub_upload.stage import parse
from hub_upload.stage_model import stage_model
from hub_upload.verify import NotPublishableError, static_faults, verify
from tests.hub import REPO_ID, REPOSITORY, append, copy_staged, edit_json, make_checkpoint, record_again, stage_small
from train import _run_config
from training.arguments import DataArguments, ModelArguments, SceneTrainingArguments

pytestmark = pytest.mark.xdist_group("hub")
PLANTED_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz12345678"


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    return stage_small(tmp_path_factory.mktemp("hub"))


def plant_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")


def plant_hidden_pickle(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    (folder / "merges.txt").write_bytes(buffer.getvalue())


def plant_broken_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def plant_optimizer_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), "optimizer.exp_avg": torch.zeros(2)}, path, metadata={"format": "pt"})


def plant_token_in_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "note": PLANTED_TOKEN})


def plant_docstring(folder: Path) -> None:
    append(
        folder / "chat_vggt_qwen3.py",
        '\n\ndef late():\n    """Use it so:\n\n    from .elsewhere import thing\n    """\n',
    )


def plant_wrong_class(folder: Path) -> None:
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    edit_json(folder / "config.json", auto_map={**auto_map, "AutoModel": "modeling_vggt_qwen3.VggtQwen3Output"})


def plant_missing_auto_class(folder: Path) -> None:
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    del auto_map["AutoModelForImageTextToText"]
    edit_json(folder / "config.json", auto_map=auto_map)


def card(folder: Path, old: str, new: str) -> None:
    text = (folder / "README.md").read_text()
    assert old in text
    (folder / "README.md").write_text(text.replace(old, new))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (plant_pickle, "pytorch_model.bin is a pickle"),
    "hidden pickle": (plant_hidden_pickle, "merges.txt is a pickle"),
    "cut weights": (plant_broken_weights, "model.safetensors is not safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "optimizer tensor": (plant_optimizer_tensor, "optimizer.exp_avg is an optimizer's"),
    "optimizer file": (lambda f: (f / "optimizer.json").write_text("{}"), "optimizer.json belongs to a training run"),
    "trainer state": (lambda f: (f / "trainer_state.json").write_text("{}"), "belongs to a training run"),
    "stray file": (lambda f: (f / "notes.txt").write_text("x"), "notes.txt has no place"),
    "hidden file": (lambda f: (f / ".env").write_text("A=1"), ".env has no place"),
    "no generation config": (lambda f: (f / "generation_config.json").unlink(), "generation_config.json is missing"),
    "missing code": (lambda f: (f / "modeling_perceiver.py").unlink(), "modeling_perceiver.py is missing"),
    "docstring import": (plant_docstring, "takes for a relative import: 'from .elsewhere import'"),
    "package import": (
        lambda f: append(f / "modeling_vggt.py", "\nfrom . import modeling_perceiver\n"),
        "`from . import modeling_perceiver` fails",
    ),
    "project import": (
        lambda f: append(f / "modeling_vggt.py", "\nfrom training.data import SceneDataset\n"),
        "imports training, which only this project has",
    ),
    "unguarded import": (
        lambda f: append(f / "modeling_vggt.py", "\nimport scipy\n"),
        "imports scipy; guard it by try",
    ),
    "leftover code": (lambda f: (f / "old_model.py").write_text("x = 1\n"), "old_model.py is there, but nothing"),
    "syntax": (lambda f: append(f / "modeling_vggt.py", "\ndef ("), "modeling_vggt.py is not Python"),
    "wrong auto_map": (plant_wrong_class, "'modeling_vggt_qwen3.VggtQwen3Output', wanted"),
    "missing auto_map": (plant_missing_auto_class, "AutoModelForImageTextToText = None, wanted"),
    "auto_map to nowhere": (
        lambda f: edit_json(f / "processor_config.json", auto_map={"AutoProcessor": "gone.Processor"}),
        "AutoProcessor = 'gone.Processor', which is not in this folder",
    ),
    "name of a folder": (
        lambda f: edit_json(f / "config.json", _name_or_path="outputs/demo"),
        "config.json names a local path: _name_or_path = 'outputs/demo'",
    ),
    "absolute path": (
        lambda f: edit_json(f / "tokenizer_config.json", vocab="/home/someone/vocab.json"),
        "tokenizer_config.json holds a path of a machine",
    ),
    "path in code": (
        lambda f: append(f / "modeling_vggt.py", '\nWEIGHTS = "/home/someone/weights"\n'),
        "modeling_vggt.py holds a path of a machine",
    ),
    "no metadata": (lambda f: (f / "README.md").write_text("# A model\n"), "README.md has no metadata"),
    "no licence": (lambda f: card(f, "license: apache-2.0\n", ""), "README.md names no licence"),
    "unnamed licence": (lambda f: card(f, "license: apache-2.0\n", "license: other\n"), "`other` needs license_name"),
    "no limits": (lambda f: card(f, "## Limits\n", ""), "no section 'Limits'"),
    "placeholder": (lambda f: append(f / "README.md", "\n{{ name }}\n"), "a placeholder that was never filled"),
    "token in card": (
        lambda f: append(f / "README.md", f"\n{PLANTED_TOKEN}\n"),
        "README.md holds a Hugging Face token",
    ),
    "token in code": (
        lambda f: append(f / "modeling_vggt.py", f'\nTOKEN = "{PLANTED_TOKEN}"\n'),
        "modeling_vggt.py holds a Hugging Face token",
    ),
    "token in weights": (plant_token_in_weights, "model.safetensors holds a Hugging Face token"),
    "card of another encoding": (
        lambda f: (f / "README.md").write_bytes("---\nlicense: café\n---\n".encode("latin-1")),
        "README.md is not UTF-8",
    ),
    "code of another encoding": (
        lambda f: (f / "modeling_vggt.py").write_bytes("x = 'é'\n".encode("latin-1")),
        "modeling_vggt.py is not UTF-8",
    ),
    "private key": (
        lambda f: append(f / "NOTICE", "\n-----BEGIN RSA PRIVATE " + "KEY-----\n"),
        "NOTICE holds a private key",
    ),
    "password": (
        lambda f: append(f / "README.md", "\nhttps://me:" + "secret@example.org/x\n"),
        "a password in an address",
    ),
}


MODEL_CODE = (
    *(
        "configuration",
        "modeling",
        "generation",
        "answering",
        "decoding",
        "loading",
        "kernels",
        "constants",
        "cuda_graphs",
    ),
    *("processing", "image_processing", "action", "constraint", "chat", "geometry", "scene", "depth"),
)
NAMES = ("config.json", "generation_config.json", "model.safetensors", "README.md", "LICENSE", "NOTICE")
NAMES += ("processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json")


def test_a_sound_folder_has_no_fault(staged):
    assert static_faults(staged, read_staged(staged)) == []


def test_it_holds_what_loads_and_nothing_else(staged):
    """Neither the code of training alone (heads, rays) nor what converts checkpoints."""
    code = {f"{stem}_vggt_qwen3.py" for stem in MODEL_CODE} | {"modeling_vggt.py", "modeling_perceiver.py"}
    assert set(read_staged(staged).files) == code | set(NAMES)
    assert (staged / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_named(name, staged, tmp_path):
    plant, wanted = FAULTS[name]
    folder = copy_staged(staged, tmp_path)
    plant(folder)
    record = record_again(folder)
    with pytest.raises(NotPublishableError) as caught:
        verify(folder)
    assert wanted in str(caught.value)
    assert PLANTED_TOKEN not in str(caught.value)
    with pytest.raises(NotStagedError, match="not verified"):
        read_verified(folder)
    assert len(static_faults(folder, record)) <= 3  # the fault and what follows from it, not noise


def test_the_users_own_token_is_found_whatever_it_looks_like(staged, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "unusual-token-of-mine")
    folder = copy_staged(staged, tmp_path)
    append(folder / "NOTICE", "unusual-token-of-mine")
    faults = static_faults(folder, record_again(folder))
    assert len(faults) == 1
    assert "your own token" in faults[0]
    assert "unusual" not in faults[0]


def test_all_faults_are_told_at_once(staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    plant_pickle(folder)
    card(folder, "license: apache-2.0\n", "")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(NotPublishableError) as caught:
        verify(folder)
    for wanted in ("model.safetensors is not what was staged", "is a pickle", "names no licence", "was not staged"):
        assert wanted in str(caught.value)


def test_links_out_of_the_folder_are_refused(staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    (folder / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"links \(vocab.json\)"):
        verify(folder)


def test_other_weights_are_found_by_their_answers(staged, tmp_path):
    """The record agrees with the files; only the logits of the staging process tell."""
    folder = copy_staged(staged, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "model.resampler.latents"
    weights[name] = weights[name] + 0.05 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    record_again(folder)
    with pytest.raises(NotPublishableError, match=r"photographs\.logits differ by up to"):
        verify(folder)


def test_code_that_fails_only_when_it_is_loaded_is_found(staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    append(folder / "configuration_vggt_qwen3.py", "\nraise RuntimeError('only when loaded')\n")
    record_again(folder)
    with pytest.raises(NotPublishableError, match=r"it does not load.*only when loaded"):
        verify(folder)


def test_code_that_never_ends_is_a_fault(staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    append(folder / "configuration_vggt_qwen3.py", "\nimport time\ntime.sleep(600)\n")
    result = prove(folder, record_again(folder), timeout_s=15)
    assert result["faults"] == ["it does not load and answer within 15 s"]


def test_who_changes_a_verified_folder_must_verify_again(staged, tmp_path):
    folder = copy_staged(staged, tmp_path)
    write_verified(folder, read_staged(folder), [])
    assert read_verified(folder).repo_id == REPO_ID
    append(folder / "README.md", "\nOne more line.\n")
    with pytest.raises(NotStagedError, match="has changed since it was verified"):
        read_verified(folder)
    with pytest.raises(NotPublishableError, match=r"README\.md is not what was staged"):
        verify(folder)
    with pytest.raises(NotStagedError, match="was not verified"):
        read_verified(folder)


def test_the_supported_versions_are_those_that_the_tests_run_on():
    pinned = [(REPOSITORY / name).read_text() for name in ("constraints-oldest.txt", "constraints.txt")]
    assert [re.search(r"^transformers==(.+)$", text, flags=re.MULTILINE)[1] for text in pinned] == list(SUPPORTED)


def test_a_model_is_proved_under_both_ends_unless_told_otherwise(staged, tmp_path, monkeypatch, capsys):
    """Where pip finds no package, it says what is not proved and how to go on."""
    asked = []
    monkeypatch.setattr(verify_module, "verify", lambda folder, versions, packages: asked.append(tuple(versions)) or [])
    verify_module.main([str(staged)])
    verify_module.main([str(staged), "--installed-only"])
    assert asked == [SUPPORTED, ()]
    assert f"next: python -m hub_upload.push {staged} --repo-id {REPO_ID}\n" in capsys.readouterr().out
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"transformers 5\.17\.0 cannot be installed.*say --installed-only"):
        install_transformers("5.17.0", tmp_path)
    assert not (tmp_path / "transformers-5.17.0" / "complete").exists()


def test_folders_that_nobody_staged(tmp_path):
    with pytest.raises(NotStagedError, match="no folder"):
        verify(tmp_path / "gone")
    with pytest.raises(NotStagedError, match="was not staged"):
        verify(tmp_path)


class TestStage:
    def settings(self, folder: Path, *words: str):
        return parse(["--model", str(folder), "--output", str(folder.parent / "out"), "--repo-id", REPO_ID, *words])

    @pytest.fixture
    def checkpoint(self, staged, tmp_path) -> Path:
        return Path(shutil.copytree(staged.parent / "checkpoint", tmp_path / "checkpoint"))

    def test_an_encoder_of_unknown_origin_is_refused(self, checkpoint):
        (checkpoint / "run_config.yaml").unlink()
        with pytest.raises(ValueError, match="not recorded: say --encoder"):
            stage_model(self.settings(checkpoint, "--trained-on", "rooms"))

    def test_a_mistyped_folder_is_named_as_such(self, tmp_path):
        with pytest.raises(ValueError, match=r"not recorded \(there is no folder .*/gone\): say --encoder"):
            stage_model(self.settings(tmp_path / "gone"))

    def test_data_of_unknown_origin_is_refused(self, checkpoint):
        with pytest.raises(ValueError, match="what the model was trained on is not recorded"):
            stage_model(self.settings(checkpoint))

    def test_the_sources_come_from_the_manifest_of_the_data(self, checkpoint, tmp_path):
        rooms = tmp_path / "rooms"
        rooms.mkdir()
        write_manifest(rooms, counts={"scenes": {"train": {"rooms": 2}}}, options={}, source_files={})
        append(checkpoint / "run_config.yaml", f"dataset: ['{rooms}']\n")
        stage_model(self.settings(checkpoint))
        text = (checkpoint.parent / "out" / "README.md").read_text()
        assert "- procedural rooms, made by this project: apache-2.0" in text
        assert str(rooms) not in text

    def test_a_licence_that_wants_a_copy_gets_it(self, checkpoint, tmp_path):
        words = ["--trained-on", "scanqa", "--encoder", "vggt-1b-commercial", "--text-model", "Qwen/Qwen3-4B"]
        with pytest.raises(ValueError, match="--encoder-license"):
            stage_model(self.settings(checkpoint, *words))
        gone = ["--encoder-license", str(tmp_path / "gone.txt")]
        with pytest.raises(FileNotFoundError, match=r"--encoder-license names .*gone\.txt, and there is no such file"):
            stage_model(self.settings(checkpoint, *words, *gone))
        assert not (checkpoint.parent / "out.partial").exists()
        (tmp_path / "agreement.txt").write_text("the agreement")
        settings = self.settings(checkpoint, *words, "--encoder-license", str(tmp_path / "agreement.txt"))
        staged = stage_model(settings)
        assert (settings.output / "LICENSE-VGGT").read_text() == "the agreement"
        text = (settings.output / "README.md").read_text()
        assert "license: other\n" in text
        assert "license_link: LICENSE-VGGT" in text
        assert "- Qwen/Qwen3-4B" in text
        assert "cc-by-nc-sa-3.0" in text
        assert static_faults(settings.output, staged) == []

    def test_non_commercial_weights_say_so(self, checkpoint):
        words = ["--trained-on", "sqa3d", "--encoder", "vggt-1b", "--text-model", "Qwen/Qwen3-4B"]
        settings = self.settings(checkpoint, *words)
        stage_model(settings)
        assert "license: cc-by-nc-4.0" in (settings.output / "README.md").read_text()
        assert "non-commercial use only" in (settings.output / "NOTICE").read_text()

    def test_the_card_tells_the_settings_that_were_changed_without_paths(self, checkpoint):
        run_config = _run_config(ModelArguments(), DataArguments(), SceneTrainingArguments(num_train_epochs=3))
        (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(run_config))
        settings = self.settings(checkpoint, "--trained-on", "rooms")
        stage_model(settings)
        text = (settings.output / "README.md").read_text()
        assert text.partition("```yaml\n")[2].partition("\n```")[0] == "num_train_epochs: 3"

    @pytest.mark.parametrize("tasks", [["rooms_qa"], ["rooms_qa", "rooms_actions"], None])
    def test_the_card_tells_whether_actions_were_learnt(self, tasks, checkpoint):
        run_config = _run_config(ModelArguments(), DataArguments(tasks=tasks), SceneTrainingArguments())
        (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(run_config))
        settings = self.settings(checkpoint, "--trained-on", "rooms")
        stage_model(settings)
        text = (settings.output / "README.md").read_text()
        assert ("actions it has not learnt" in text) == (tasks == ["rooms_qa"])

    def test_the_card_tells_no_places(self, staged):
        text = (staged / "README.md").read_text()
        assert "learning_rate: 0.002" in text
        assert "num_views: 4" in text
        assert "output_dir" not in text and "prepared_dir" not in text

    def test_what_a_run_leaves_beside_the_model_stays_behind(self, checkpoint, staged):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"state": torch.zeros(2)}, checkpoint / name)
        (checkpoint / "trainer_state.json").write_text("{}")
        (checkpoint / "checkpoint_complete").touch()
        (checkpoint / "modeling_rays.py").write_text("from .modeling_perceiver import RayEmbedding\n")  # an older run's
        (checkpoint / "runs").mkdir()
        (checkpoint / "runs" / "events.out.tfevents.1").touch()
        settings = self.settings(checkpoint, "--trained-on", "rooms")
        assert set(stage_model(settings).files) == set(read_staged(staged).files)

    def test_what_is_there_is_not_overwritten(self, checkpoint, tmp_path):
        settings = self.settings(checkpoint, "--trained-on", "rooms")
        settings.output.mkdir()
        (settings.output / "mine.txt").touch()
        with pytest.raises(FileExistsError, match="name another folder"):
            stage_model(dataclasses.replace(settings, overwrite=True))
        other = dataclasses.replace(settings, output=tmp_path / "other")
        stage_model(other)
        with pytest.raises(FileExistsError, match="add --overwrite"):
            stage_model(other)
        stage_model(dataclasses.replace(other, overwrite=True))

    @pytest.mark.parametrize("name", ["rooms", "a/b/c", "a/b c", "a/b--c"])
    def test_names_that_the_hub_would_refuse(self, name):
        with pytest.raises(ValueError, match="repo-id"):
            parse(["--output", "x", "--repo-id", name])

    def test_weights_are_saved_in_the_dtype_that_is_asked_for(self, checkpoint, tmp_path):
        settings = self.settings(checkpoint, "--trained-on", "rooms", "--dtype", "bfloat16")
        stage_model(settings)
        kinds = {tensor.dtype for tensor in load_file(settings.output / "model.safetensors").values()}
        assert kinds == {torch.bfloat16}
        assert json.loads((settings.output / "config.json").read_text())["dtype"] == "bfloat16"

    def test_shards_make_an_index(self, checkpoint, tmp_path):
        settings = dataclasses.replace(self.settings(checkpoint, "--trained-on", "rooms"), max_shard_size="500KB")
        staged = stage_model(settings)
        index = json.loads((settings.output / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
        assert static_faults(settings.output, staged) == []
        first = sorted(set(index["weight_map"].values()))[0]
        (settings.output / first).unlink()
        faults = static_faults(settings.output, record_again(settings.output))
        assert any("where it is not" in fault for fault in faults)


def test_a_checkpoint_whose_figures_are_of_another_model(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    metrics = {"model": {"name": "other", "fingerprint": "0" * 64}, "dataset": {}, "settings": {}, "tasks": {}}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    words = ["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--repo-id", REPO_ID]
    words += ["--trained-on", "rooms", "--evaluation", str(evaluation)]
    with pytest.raises(ValueError, match="figures of another model"):
        stage_model(parse(words))
    metrics["model"] |= {"fingerprint": folder_fingerprint(checkpoint), "dtype": "float32"}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"figures in float32, .* is in bfloat16: evaluate with --dtype bfloat16"):
        stage_model(parse([*words, "--dtype", "bfloat16"]))
    (evaluation / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        stage_model(parse(words))
    (evaluation / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no metrics\.json"):
        stage_model(parse(words))
