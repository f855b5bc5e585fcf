"""The numbers of the published VGGT: all that the official classes gave at reduced size, layer by layer."""

from __future__ import annotations

import re

import pytest
import torch

from modeling_vggt_qwen3.constants_vggt_qwen3 import apply_rotary, normalize_pixels, rotary_tables
from modeling_vggt_qwen3.modeling_vggt_heads import (
    VggtForReconstruction,
    cameras_from_pose_encoding,
    inverse_log,
    matrix_to_quaternion,
    pose_encoding_from_cameras,
    quaternion_to_matrix,
    unproject_depth,
    uv_embedding,
)
from processing.geometry_vggt_qwen3 import invert_rigid
from tests.vggt import CASES, convert_fixture, record, relative_error

ATTENTIONS = ("sdpa", "eager")
NAMES = {"extrinsics": "extrinsic", "intrinsics": "intrinsic"}
OUTPUTS = ("extrinsics", "intrinsics", "depth", "depth_conf", "world_points", "world_points_conf")


def close(found: torch.Tensor, wanted: torch.Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=rtol)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VggtForReconstruction:
    return VggtForReconstruction.from_pretrained(convert_fixture(tmp_path_factory.mktemp("converted")))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_layer(model, case, attention):
    wanted = record(f"A_{case}_io")
    model.set_attn_implementation(attention)
    with torch.no_grad():
        encoder = model.vggt(wanted["images"], feature_layers=[-1, *range(model.config.num_hidden_layers)])
    assert encoder.patch_start_idx == int(wanted["patch_start_idx"])
    close(encoder.feature_maps[-1][0], wanted["dbg.x_norm_patchtokens"])
    for layer in range(model.config.num_hidden_layers):
        close(encoder.feature_maps[layer], wanted[f"aggregated_tokens_list.{layer}"])
        assert relative_error(encoder.feature_maps[layer], wanted[f"aggregated_tokens_list.{layer}"]) < 3e-6
    assert torch.equal(encoder.last_hidden_state, encoder.feature_maps[layer])


@pytest.mark.parametrize("case", CASES)
def test_heads(model, case):
    wanted = record(f"A_{case}_io")
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        found = model(wanted["images"], feature_layers="all")
    for iteration, pose in enumerate(found.pose_enc_list):
        close(pose, wanted[f"pose_enc_list.{iteration}"])
    assert torch.equal(found.pose_enc, found.pose_enc_list[3])
    for name in OUTPUTS:
        close(found[name], wanted[NAMES.get(name, name)], rtol=1e-3 if name == "intrinsics" else 1e-4)
    points = unproject_depth(found.depth, found.extrinsics, found.intrinsics)
    close(points, wanted["unprojected_points"], rtol=1e-3)
    assert sorted(found.feature_maps) == list(range(model.config.num_hidden_layers))


def test_bytes_are_the_same_photograph(model):
    images = (record("A_main_io")["images"] * 255).round()
    with torch.no_grad():
        from_bytes, from_floats = model.vggt(images.byte()), model.vggt(images / 255)
    assert torch.equal(from_bytes.last_hidden_state, from_floats.last_hidden_state)
    close(normalize_pixels(record("A_main_io")["images"])[0], record("A_main_io")["dbg.normalized_images"])


def test_cameras_and_depth():
    unit = record("G_geometry_units")
    size = tuple(unit["geom.image_hw"].tolist())
    extrinsics, intrinsics = cameras_from_pose_encoding(unit["geom.pose_enc"], size)
    close(extrinsics, unit["geom.extrinsic"])
    close(intrinsics, unit["geom.intrinsic"], rtol=1e-3)
    close(pose_encoding_from_cameras(extrinsics, intrinsics, size), unit["geom.pose_enc_roundtrip"])
    close(unproject_depth(unit["geom.depth"], extrinsics, intrinsics), unit["geom.unprojected"], rtol=1e-3)
    cam_from_world = torch.eye(4).repeat(8, 1, 1)
    cam_from_world[:, :3] = extrinsics.flatten(0, 1)
    close(
        torch.stack([torch.from_numpy(invert_rigid(m.double().numpy())) for m in cam_from_world]).float(),
        unit["geom.se3_inverse"],
    )


def test_rotations():
    unit = record("G_geometry_units")
    close(quaternion_to_matrix(unit["rot.quat_xyzw"]), unit["rot.matrix"])
    close(matrix_to_quaternion(unit["rot.matrix"]), unit["rot.quat_back"])
    half_turns = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    close(quaternion_to_matrix(matrix_to_quaternion(half_turns)), half_turns)


def test_rotary_embedding():
    unit = record("G_geometry_units")
    for positions, heads, wanted in zip(unit["rope.pos"], unit["rope.in"], unit["rope.out"]):
        tables = rotary_tables(positions, head_dim=64, theta=100.0)
        close(apply_rotary(heads.transpose(0, 1), tables).transpose(0, 1), wanted)


def test_position_embedding_of_maps_and_activation():
    unit = record("G_geometry_units")
    close(inverse_log(unit["act.in"]), unit["act.inv_log"])
    names = [name for name in unit if name.startswith("uv.")]
    assert len(names) == 3
    for name in names:
        width, height, image_width, image_height, channels = map(int, re.findall(r"\d+", name))
        found = uv_embedding(width, height, image_width / image_height, channels, torch.device("cpu"))
        close(found.permute(1, 2, 0), unit[name])
