"""The table of the small model: rows run to figures, finished work is kept, figures add up and become a page."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

import train
from benchmarks import predecessor, rooms_table
from benchmarks.rooms_report import BEGIN, DOCS, END, FIGURES, render, tables
from benchmarks.rooms_results import _gain, merged, write_figures
from benchmarks.rooms_rows import ROWS, parse_rows
from datasets_scripts.build import build
from datasets_scripts.rooms.source import RoomsSource
from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3Model
from tests.fake import small_config
from training.arguments import known_keys
from training.freezing import part_of

pytestmark = pytest.mark.xdist_group("rooms_table")  # what the module makes once is dear

SETTINGS = {"max_steps": 20, "num_views": 2, "samples_per_scene": 4, "per_device_train_batch_size": 8, "num_rays": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with rooms and a small model's JSON."""
    folder = tmp_path_factory.mktemp("table")
    build(RoomsSource(4, 2, views=2, size=56, dense_labels=True), folder / "rooms", num_proc=1, progress=False)
    config = small_config()
    config.text_config.vocab_size, config.text_config.max_position_embeddings = 1536, 1024
    config.perceiver_config.latent_start = "spread"
    (folder / "model.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def words(made) -> list[str]:
    """A command line of few small steps; seeds and rows come behind it."""
    values = {"dataset": made / "rooms", "folder": made / "runs", "model": made / "model.json", "limit": 3}
    values |= {"scale": 0.1, "output": made / "rooms.json", "settings": json.dumps(SETTINGS)}
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def entry(made, words) -> dict:
    """The figures of one row, trained and scored by processes of their own."""
    rooms_table.main([*words, "--rows", "images_only"])
    (row,) = json.loads((made / "rooms.json").read_text())["rows"]
    return row


def test_a_row_is_trained_and_scored(made, entry):
    assert (entry["row"], entry["seed"], entry["scale"], entry["encoder_scale"]) == ("images_only", 0, 0.1, 0.1)
    assert entry["encoder_seed"] is None
    assert {name: stage["steps"] for name, stage in entry["stages"].items()} == {"0": 2, "1": 2, "2": 2}
    assert all(stage["seconds"] > 0 < stage["samples_per_second"] for stage in entry["stages"].values())
    assert list(entry["conditions"]) == ["sighted", "blind"]
    sighted = entry["conditions"]["sighted"]
    assert sighted["questions"]["count"] == 3 and sighted["questions"]["gain"] is not None
    low, high = sighted["questions"]["interval"]
    assert 0 <= low <= sighted["questions"]["exact_match"] <= high <= 100
    anchors = sum(sighted[kind]["count"] for kind in ("furniture", "thin") if sighted[kind])
    assert anchors + sighted["lists"]["count"] == 3
    folder = made / "runs" / "images_only-0-x0.1"
    config = json.loads((folder / "stage2" / "config.json").read_text())
    assert not config["use_geometry_tokens"] and not config["perceiver_config"]["use_ray_embedding"]
    assert "2/2" in (folder / "stage1.log").read_text()


def test_the_encoder_is_that_of_stage_0(made, entry):
    (encoder,) = (made / "runs").glob("encoder-0-*")
    trained = load_file(encoder / "stage0" / "model.safetensors")
    kept = load_file(made / "runs" / "images_only-0-x0.1" / "stage2" / "model.safetensors")
    shared = {name: f"model.vision_model.{name.removeprefix('vggt.')}" for name in trained if name.startswith("vggt.")}
    assert shared and all(torch.equal(trained[name], kept[other]) for name, other in shared.items())


def test_seeds_may_share_an_encoder(made, words, entry):
    (encoder,) = (made / "runs").glob("encoder-0-*")
    with pytest.raises(SystemExit):
        rooms_table.main([*words, "--rows", "main", "--seeds", "4", "--encoder-seed", "0", "--time-limit", "0"])
    settings = json.loads((made / "runs" / "main-4-x0.1" / "stage1.yaml").read_text())
    assert settings["seed"] == 4 and settings["vision_checkpoint"] == str(encoder / "stage0")


def test_what_is_finished_is_not_done_again(made, words, entry, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(rooms_table.subprocess, "Popen", refuse)
    rooms_table.main([*words, "--rows", "images_only"])
    (row,) = json.loads((made / "rooms.json").read_text())["rows"]
    assert {**row, "machine": None} == {**entry, "machine": None}
    with pytest.raises(RuntimeError, match="a process was started"):
        rooms_table.main([*words, "--rows", "images_only", "--limit", "2"])


def test_other_settings_want_another_folder(words, entry):
    other = json.dumps({**SETTINGS, "learning_rate": 1e-5})
    with pytest.raises(ValueError, match=r"images_only-0-x0\.1 holds a model of other settings \(.*stage 1"):
        rooms_table.main([*words, "--rows", "images_only", "--settings", other, "--time-limit", "0"])


def test_ends_with_the_time(words, entry, capsys):
    with pytest.raises(SystemExit) as ended:
        rooms_table.main([*words, "--rows", "rays", "--time-limit", "0"])
    assert ended.value.code == 75
    assert "the same command goes on" in capsys.readouterr().out


def test_a_process_that_runs_out_of_time_is_told_and_waited_for(tmp_path):
    program = "import signal,sys,time;signal.signal(signal.SIGTERM,lambda *_:sys.exit(75));print('on',flush=True);"
    step = rooms_table.Step("slow", tmp_path, [sys.executable, "-c", program + "time.sleep(60)"], tmp_path / "none")
    with pytest.raises(rooms_table.OutOfTimeError):
        rooms_table.Runner(rooms_table.Clock(2.0), 1).run([step])
    assert 1.5 < step.seconds < 30 and "on" in (tmp_path / "slow.log").read_text()


def test_a_process_that_fails_is_named_with_its_log(tmp_path):
    step = rooms_table.Step(
        "stage1", tmp_path, [sys.executable, "-c", "raise SystemExit('no such rooms')"], tmp_path / "no"
    )
    with pytest.raises(RuntimeError, match=r"stage1 failed; .*stage1\.log ends:\n.*\nno such rooms"):
        rooms_table.Runner(rooms_table.Clock(None), 1).run([step])


def test_figures_add_up(tmp_path, entry):
    path = tmp_path / "rooms.json"
    write_figures(path, merged(path, entry))
    write_figures(path, merged(path, {**entry, "seed": 1}))
    write_figures(path, merged(path, {**entry, "scale": 1.0}))
    write_figures(path, merged(path, {**entry, "scale": 1.0, "encoder_seed": 3}))
    again = merged(path, {**entry, "parameters": 7})
    assert [(row["seed"], row["scale"], row["encoder_seed"], row["parameters"] == 7) for row in again] == [
        (0, 0.1, None, True),
        (0, 1.0, 3, False),
        (0, 1.0, None, False),
        (1, 0.1, None, False),
    ]


def test_what_seeing_gains_is_positive():
    paired = {"blind": {"metrics": {"EM@1": {"difference": -25.0, "interval": [-34.0, -16.0]}}}}  # blind minus sighted
    assert _gain(paired, "sighted") == {"value": 25.0, "interval": [16.0, 34.0]}
    assert _gain(paired, "blind") is None


def test_every_row_changes_what_it_says():
    whole = VggtQwen3Config(**json.loads((rooms_table.CONFIGS / "models" / "rooms-tiny.json").read_text())).to_dict()
    changes = {}
    for name, row in ROWS.items():
        fields = copy.deepcopy(whole)
        row.edit(fields)
        VggtQwen3Config(**fields)
        pairs = [(fields, whole), (fields["perceiver_config"], whole["perceiver_config"])]
        changes[name] = {key for new, old in pairs for key in new if new[key] != old[key]} - {"perceiver_config"}
        assert set(row.settings) <= known_keys()
    rays, points, layers = "use_ray_embedding", "use_point_embedding", "feature_layers"
    assert changes == {
        "main": set(),
        "images_only": {"use_geometry_tokens", rays, points},
        "geometry_tokens": {rays, points},
        "rays": {points},
        "last_layer": {layers},
        "several_layers": {layers},
        "no_latent_labels": set(),
        "learned_latents": {"latent_start"},
        "latents_32": {"num_latents"},
        "latents_128": {"num_latents"},
        "no_dense_supervision": set(),
        "no_geometry_consistency": set(),
        "no_stage0": set(),
        "predecessor": {"use_geometry_tokens", rays, points, layers, "latent_start"},
    }
    assert [row.name for row in parse_rows("rays, main,rays")] == ["rays", "main"]
    with pytest.raises(ValueError, match=r"names ray; known are all, main"):
        parse_rows("ray,main")


def test_the_predecessor_trains_the_text_model_alone(made, tmp_path, monkeypatch):
    monkeypatch.setattr(VggtQwen3Model, "__init__", VggtQwen3Model.__init__)  # put back when the test ends
    predecessor.put_in_place()
    fields = json.loads((made / "model.json").read_text())
    predecessor.edit_model(fields)
    assert fields["perceiver_config"]["num_latents"] == 16, "a view of 56 x 56 has no more patches"
    (tmp_path / "model.json").write_text(json.dumps(fields))
    options = {"model": tmp_path / "model.json", "dataset": made / "rooms", "tasks": "rooms_qa", "num_views": 2}
    options |= {"samples_per_scene": 4, "per_device_train_batch_size": 8, "warmup_steps": 0, "learning_rate": 0.01}
    options |= {"trainable_parts": "text", "prepare_data": "cpu", "prepared_dir": tmp_path / "prepared"}
    options |= {"report_to": "none", "use_cpu": True, "save_strategy": "no"}
    runs = {}
    for steps in (1, 3):
        values = {**options, "max_steps": steps, "output_dir": tmp_path / str(steps)}
        train.main([word for key, value in values.items() for word in (f"--{key}", str(value))])
        runs[steps] = load_file(tmp_path / str(steps) / "model.safetensors")
    assert runs[1].keys() == runs[3].keys() and "model.resampler.proj.weight" in runs[1]
    moved = {part_of(name) for name in runs[1] if not torch.equal(runs[1][name], runs[3][name])}
    assert moved == {"text"}
    assert not any(name.startswith(("model.resampler.layers", "model.geometry_tokens")) for name in runs[1])


def test_the_predecessor_sees_the_first_view_alone():
    config = small_config()
    config.perceiver_config.num_latents, config.perceiver_config.feature_layers = 4, [1]
    tokens = predecessor.FirstTokens(config)
    features = {1: torch.randn(2, 3, 6, 64)}
    wanted = tokens(features)[0]
    assert wanted.shape == (2, 4, 48)
    changed = {1: torch.cat((features[1][:, :1, :4], torch.randn(2, 1, 2, 64)), dim=2)}
    assert torch.equal(tokens(changed)[0], wanted)


def test_tables_stand_between_the_marks(tmp_path, entry):
    main = copy.deepcopy(entry) | {"row": "main", "scale": 1.0, "encoder_scale": 1.0}
    for seed, right in ((0, 96.0), (1, 97.0), (2, 98.5)):
        row = copy.deepcopy(main) | {"seed": seed}
        row["conditions"]["sighted"]["questions"]["exact_match"] = right
        write_figures(tmp_path / "rooms.json", merged(tmp_path / "rooms.json", row))
    small = copy.deepcopy(entry) | {"parameters": 123_456}
    small["conditions"]["sighted"]["questions"] |= {"exact_match": 93.0, "interval": [91.5, 94.25]}
    small["conditions"]["sighted"]["furniture"] = {
        "count": 2,
        "center_error_median_m": {"value": None, "interval": [0.5, None]},
    }
    write_figures(tmp_path / "rooms.json", merged(tmp_path / "rooms.json", small))
    page = tmp_path / "page.md"
    page.write_text(f"# Rooms\n{BEGIN}\nnothing yet\n{END}\nthe end\n")
    for _ in range(2):
        render(tmp_path / "rooms.json", page)
    text = page.read_text()
    assert text.startswith(f"# Rooms\n{BEGIN}\n") and text.endswith(f"{END}\nthe end\n") and "nothing yet" not in text
    assert "| the views of the scene | 97.2 [96.0 – 98.5] |" in text
    assert "| images alone | 0.1 M | 93.0 (91.5 – 94.2) | ∞ (0.500 – ∞) |" in text
    assert "2 + 2 + 2 steps of the stages, seeds 0, 1, 2" in text and entry["machine"]["torch"] in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    starts = [i for i, line in enumerate(rows) if set(line) == {"|", "-"}]
    assert len(starts) == 4, "results, types, ablations, times"
    for start, end in zip(starts, [*(i - 1 for i in starts[1:]), len(rows)]):
        assert len({line.count("|") for line in rows[start - 1 : end]}) == 1


def test_what_cannot_be_rendered_is_named(tmp_path, entry):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(FileNotFoundError, match=r"no figures .*rooms\.json: train first"):
        render(tmp_path / "rooms.json", page)
    write_figures(tmp_path / "rooms.json", [entry])
    with pytest.raises(ValueError, match=r"page\.md lacks the marks"):
        render(tmp_path / "rooms.json", page)


def test_the_page_holds_the_figures_or_says_that_there_are_none():
    written = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    if FIGURES.is_file():
        assert written == tables(json.loads(FIGURES.read_text(encoding="utf-8"))["rows"])
    else:
        assert "not yet been trained" in written
