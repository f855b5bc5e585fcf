"""Official checkpoints in, loadable folders out; or an error, and nothing on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_vggt_qwen3 import convert_vggt_checkpoint
from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtConfig
from modeling_vggt_qwen3.convert_vggt_checkpoint import (
    config_from_official,
    convert,
    locate_checkpoint,
    main,
    read_official_config,
    rename,
    write_safetensors,
)
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction
from tests.conftest import REPOSITORY
from tests.vggt import (
    CONFIG_JSON,
    WEIGHTS,
    convert_fixture,
    official_config,
    official_shapes,
    record,
    relative_error,
    wide_config,
)


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    return convert_fixture(tmp_path_factory.mktemp("converted"))


def run_converter(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modeling_vggt_qwen3.convert_vggt_checkpoint", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def assert_same_numbers(folder: Path, limit: float = 3e-6) -> None:
    wanted = record("A_main_io")
    with torch.no_grad():
        found = VggtForReconstruction.from_pretrained(folder)(wanted["images"])
        tokens = VggtModel.from_pretrained(folder)(wanted["images"]).last_hidden_state
    assert relative_error(found.depth, wanted["depth"]) < limit
    assert relative_error(tokens, wanted["aggregated_tokens_list.4"]) < limit


def test_command_converts_a_wrapped_pickle_with_track_head(official, tmp_path):
    state = official | {"track_head.tracker.weight": torch.zeros(3), "track_head.tracker.bias": torch.zeros(3)}
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pt")
    options = ["--checkpoint", tmp_path / "model.pt", "--output", tmp_path / "out", "--official-config", CONFIG_JSON]
    done = run_converter(*options)
    assert done.returncode == 0, done.stderr
    assert "396 tensors converted, ignored: 2 track_head.*, 1 aggregator.patch_embed.mask_token" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert_same_numbers(tmp_path / "out")

    with pytest.raises(SystemExit, match=f"^error: {tmp_path / 'out'} exists and is not an empty folder"):
        main([str(option) for option in options])


@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_flat_and_wrapped_pickles(official, tmp_path, wrapper):
    torch.save({wrapper: official} if wrapper else official, tmp_path / "vggt_1B_commercial.pt")
    counts = convert(tmp_path / "vggt_1B_commercial.pt", tmp_path / "out", official_config())
    assert counts == {"converted": 396, "track_head.*": 0, "aggregator.patch_embed.mask_token": 1}
    assert_same_numbers(tmp_path / "out")


def test_every_number_is_kept(official, converted):
    state = load_file(converted / "model.safetensors")
    assert len(state) == len(official) - 1
    for name, tensor in official.items():
        if not name.endswith("mask_token"):
            assert torch.equal(state[rename(name)].flatten(), tensor.flatten()), name


def test_half_precision(tmp_path):
    folder = convert_fixture(tmp_path, torch.bfloat16)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    model = VggtForReconstruction.from_pretrained(folder)
    dtypes = {name.split(".")[0]: parameter.dtype for name, parameter in model.named_parameters()}
    heads = dict.fromkeys(("camera_head", "depth_head", "point_head"), torch.float32)
    assert dtypes == {"vggt": torch.bfloat16, **heads}
    assert_same_numbers(folder, limit=1.5e-2)  # rounded weights alone cost 1e-2 (docs/performance.md)


@pytest.mark.parametrize("name", ["A_main_io", "A_native_io"])
def test_half_precision_loses_little_beside_the_same_weights(name, converted):
    """Of the arithmetic alone; rounding these weights costs up to 1.02e-2 by itself."""
    images = record(name)["images"]
    half = VggtModel.from_pretrained(converted, dtype=torch.bfloat16)
    same = VggtModel.from_pretrained(converted, dtype=torch.bfloat16).float()
    with torch.no_grad():
        found, wanted = (model(images, feature_layers="all").feature_maps for model in (half, same))
    assert wanted.keys() == found.keys()
    for layer, tokens in wanted.items():
        assert relative_error(found[layer].float(), tokens) <= 1e-2, layer


def test_saved_encoder_loads_alone(converted, tmp_path):
    encoder = VggtModel.from_pretrained(converted)
    encoder.save_pretrained(tmp_path)
    images = record("A_main_io")["images"]
    with torch.no_grad():
        again = VggtModel.from_pretrained(tmp_path)(images)
        assert torch.equal(again.last_hidden_state, encoder(images).last_hidden_state)
    with pytest.raises(ValueError, match="165 missing: camera_head"):
        VggtForReconstruction.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("damage", "refusing"),
    [
        (lambda t: t.pop("vggt.frame_blocks.0.norm1.weight"), {VggtModel, VggtForReconstruction}),
        (lambda t: t.pop("camera_head.fc1.weight"), {VggtForReconstruction}),
        (lambda t: t.update({"vggt.frame_blocks.9.norm1.weight": torch.zeros(3)}), {VggtModel, VggtForReconstruction}),
        (lambda t: t.update({"vggt.frame_blocks.0.norm1.weight": torch.zeros(3)}), {VggtModel, VggtForReconstruction}),
        (lambda t: t.update({"tracker.weight": torch.zeros(3)}), {VggtModel, VggtForReconstruction}),
    ],
    ids=["missing", "missing of a head", "unexpected", "shape", "foreign"],
)
def test_loading_refuses_other_tensors(converted, tmp_path, damage, refusing):
    shutil.copytree(converted, tmp_path / "copy")
    state = load_file(converted / "model.safetensors")
    damage(state)
    save_file(state, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    for model_class in (VggtModel, VggtForReconstruction):
        if model_class in refusing:
            with pytest.raises((ValueError, RuntimeError)):
                model_class.from_pretrained(tmp_path / "copy")
        else:
            model_class.from_pretrained(tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("aggregator.camera_token"), r"1 missing \(named as here\): vggt.camera_token"),
        (lambda t: t.update({"aggregator.extra": torch.zeros(2)}), "1 unexpected: aggregator.extra"),
        (lambda t: t.update({"vggt.camera_token": torch.zeros(2)}), "1 unexpected"),
        (
            lambda t: t.update({"aggregator.camera_token": torch.zeros(1, 2, 1, 40)}),
            r"1 of another shape: aggregator.camera_token \(1, 2, 1, 40\), wanted \(1, 2, 1, 48\)",
        ),
        (
            lambda t: t.update({"aggregator.patch_embed.patch_embed.proj.weight": torch.zeros(48, 3, 28, 7)}),
            r"proj.weight \(48, 3, 28, 7\), wanted \(48, 3, 14, 14\)",
        ),
    ],
    ids=["missing", "unexpected", "twice", "shape", "patch"],
)
def test_conversion_refuses_other_tensors_and_leaves_nothing(official, tmp_path, change, message):
    state = dict(official)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "model.safetensors", tmp_path / "out", official_config())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_nothing_is_left_when_the_disk_is_full(official, tmp_path):
    """The kernel stops the converter's writes after 1 MB."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); {_call(tmp_path)}"
    done = subprocess.run([sys.executable, "-c", limit], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def _call(folder: Path) -> str:
    options = ["--checkpoint", str(WEIGHTS), "--output", str(folder / "out"), "--official-config", str(CONFIG_JSON)]
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    return f"{ignore}; from modeling_vggt_qwen3.convert_vggt_checkpoint import main; main({options!r})"


def test_another_size_without_its_configuration(tmp_path):
    with pytest.raises(ValueError, match="for other sizes than 1B pass --official-config"):
        convert(WEIGHTS, tmp_path / "out", VggtConfig())


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran_code",)


@pytest.mark.parametrize("content", ["text", "truncated", "code"])
def test_refuses_files_that_are_not_tensors_alone(official, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    torch.save({"model": official, "extra": Payload()} if content == "code" else official, path)
    if content == "text":
        path.write_text("not a checkpoint")
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot be read as a file of tensors alone"):
        convert(path, tmp_path / "out", official_config())
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_names_what_is_no_tensor(official, tmp_path, wrapper):
    state = official | {"epoch": 3}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds among its tensors epoch, which is none: save it again"):
        convert(tmp_path / "model.pt", tmp_path / "out", official_config())


@pytest.mark.parametrize(
    "fault", [{"aggregator": {"mlp_ratio": None}}, {"aggregator": {"embed_dim": "48"}}, {"patch_embed": []}]
)
def test_values_of_a_wrong_type_are_refused_by_file(tmp_path, fault):
    path = tmp_path / "official.json"
    path.write_text(json.dumps({"config": fault}))
    with pytest.raises(SystemExit, match=f"^error: {path}"):
        main(["--checkpoint", str(WEIGHTS), "--output", str(tmp_path / "out"), "--official-config", str(path)])


def test_the_working_directory_can_be_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--checkpoint", str(WEIGHTS), "--output", ".", "--official-config", str(CONFIG_JSON)])
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("content", [{"weights": {"a": torch.zeros(2)}, "epoch": 1}, [torch.zeros(2)], {}])
def test_refuses_unknown_wrappers(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="wanted a state dict, flat or directly under 'model' or 'state_dict'"):
        convert(tmp_path / "model.pt", tmp_path / "out", official_config())


def test_damaged_safetensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot be read as a file of tensors alone"):
        convert(tmp_path / "model.safetensors", tmp_path / "out", official_config())


def test_where_checkpoints_are_looked_for(tmp_path):
    assert locate_checkpoint(str(WEIGHTS)) == WEIGHTS
    for name in (str(tmp_path), "nowhere/model.pt", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is no file"):
            locate_checkpoint(name)
    with pytest.raises(ConnectionError, match=r"nobody/nothing: the Hub cannot be reached, and none of .*model\.pt"):
        locate_checkpoint("nobody/nothing")  # tests run offline


def test_takes_the_first_file_that_a_repository_has(tmp_path, monkeypatch):
    def download(repository: str, name: str) -> str:
        if repository == "someone/most" and name != convert_vggt_checkpoint.HUB_FILES[0]:
            return str(tmp_path / name)
        raise EntryNotFoundError(name)

    monkeypatch.setattr(convert_vggt_checkpoint, "hf_hub_download", download)
    assert locate_checkpoint("someone/most") == tmp_path / convert_vggt_checkpoint.HUB_FILES[1]
    with pytest.raises(FileNotFoundError, match="neither a file nor a Hub repository"):
        locate_checkpoint("someone/else")


def test_default_configuration_is_the_published_one():
    config = config_from_official({})
    assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (1024, 24, 518)


def test_official_configurations_that_do_not_fit(tmp_path):
    sections = json.loads(CONFIG_JSON.read_text())["config"]
    sections["aggregator"] |= {"qk_norm": False, "colour": 1}
    sections["point_head"] |= {"features": 7, "dim_in": 5}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": sections}))
    with pytest.raises(ValueError) as error:
        read_official_config(path)
    for fault in (
        str(path),
        "aggregator.qk_norm = False, wanted True",
        "aggregator.colour is not known here",
        "point_head.features = 7 where another section says 16",
        "point_head.dim_in = 5, wanted twice embed_dim = 96",
    ):
        assert fault in str(error.value)
    for text, message in (("{", "is not JSON"), ("[]", "holds no object `config`"), ("{}", "holds no object `config`")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_official_config(path)


PEAK = """
import re, sys
from pathlib import Path
import torch

def peak_bytes():  # of this program alone, where `ru_maxrss` remembers what the parent took
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
CONVERT = f"""{PEAK}
from modeling_vggt_qwen3.convert_vggt_checkpoint import convert
from tests.vggt import VggtConfig, wide_config
before = peak_bytes()
convert(Path(sys.argv[1]), Path(sys.argv[2]), wide_config(), torch.bfloat16)
print(peak_bytes() - before)
"""
LOAD = f"""{PEAK}
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction
model = VggtForReconstruction.from_pretrained(sys.argv[1])
with torch.no_grad():
    outputs = model(torch.rand(1, 2, 3, 112, 168))
assert all(outputs[name].isfinite().all() for name in ("pose_enc", "depth", "world_points"))
print(peak_bytes())
"""
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")


def peak_of(program: str, *arguments: object) -> int:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return int(subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True).stdout)


@linux
@pytest.mark.parametrize("suffix", [".pt", pytest.param(".safetensors", marks=pytest.mark.slow)])
def test_conversion_streams(tmp_path, suffix):
    """Beyond what the libraries take, the peak stays under 1.3 times the checkpoint, with a change of dtype at that."""
    state = {name: torch.zeros(shape) for name, shape in official_shapes(wide_config()).items()}
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    del state
    assert path.stat().st_size > 100e6
    assert peak_of(CONVERT, path, tmp_path / "out") < 1.3 * path.stat().st_size


@linux
@pytest.mark.slow
def test_full_size_converts_loads_and_runs(tmp_path):
    """5 GB of random weights; the converter's whole peak stays under 1.3 times that, the model's under 24 GB."""
    path, rng = tmp_path / "model.safetensors", torch.Generator().manual_seed(0)
    shapes = official_shapes(VggtConfig())
    assert len(shapes) == 1797 - 394 - 1
    write_safetensors(path, shapes, torch.float32, lambda name: 0.02 * torch.randn(shapes[name], generator=rng))
    convert_full = CONVERT.replace("wide_config()", "VggtConfig()").replace("torch.bfloat16", "torch.float32")
    assert peak_of(convert_full, path, tmp_path / "out") < 1.3 * path.stat().st_size
    path.unlink()
    assert peak_of(LOAD, tmp_path / "out") < 24e9
