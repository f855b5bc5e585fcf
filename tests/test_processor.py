"""The processor: the batch table, what it refuses, chats, actions back, and loading it anywhere."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from processing import VggtQwen3ImageProcessor, VggtQwen3Processor, invert_rigid, ref_from_world, transform_points
from processing.processing_vggt_qwen3 import FLOAT32_KEYS, METRES_UNKNOWN
from tests.frames import camera, turn_and_move

TOKENIZER = Path(__file__).parents[1] / "configs" / "tokenizer-tiny"
SIDE = 56
QUESTION = "What color is the chair?"
ACTION = (
    '{"action":"place_anchor","label":"chair","center":[1.00,2.00,-0.40],"extent":[0.50,0.60,0.90],'
    '"normal":[0.00,-1.00,0.00]}'
)
INTRINSICS = np.array([[50.0, 0, 28], [0, 52, 27], [0, 0, 1]])


def make_processor(**options: Any) -> VggtQwen3Processor:
    images = VggtQwen3ImageProcessor(size=SIDE, mode=options.pop("mode", "crop"), max_views=6)
    return VggtQwen3Processor(images, AutoTokenizer.from_pretrained(TOKENIZER), num_latents=10, **options)


@pytest.fixture(scope="module")
def processor() -> VggtQwen3Processor:
    return make_processor()


def make_scene(num_views: int, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> dict[str, np.ndarray]:
    """Views, cameras and depth of one scene; `size` is height, width."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (num_views, *size, 3), dtype=np.uint8),
        "intrinsics": np.tile(INTRINSICS, (num_views, 1, 1)),
        "world_from_cam": np.stack([camera(rng.normal(size=3), rng.normal(size=3)) for _ in range(num_views)]),
        "depth": rng.uniform(0.5, 5, (num_views, *size)).astype(np.float32),
    }


def batch_of(processor: VggtQwen3Processor, *scenes: dict[str, Any], **inputs: Any) -> dict[str, torch.Tensor]:
    keys = ("images", "intrinsics", "world_from_cam", "depth")
    return processor(**{key: [scene.get(key) for scene in scenes] for key in keys}, **inputs)


def chat(processor: VggtQwen3Processor, num_views: int = 1, question: str = QUESTION, **options: Any) -> str:
    messages = processor.conversation(question, num_views=num_views, **options)
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def test_the_batch_table_is_kept(processor):
    scenes = [make_scene(3), {"images": make_scene(2)["images"]}]
    texts = [chat(processor), chat(processor, question="Is the table to the left of the door?"), chat(processor)]
    batch = batch_of(processor, *scenes, text=texts, scene_index=[0, 1, 0])
    length, patches = batch["input_ids"].shape[1], (SIDE // 14) ** 2
    table = {
        "input_ids": (torch.int64, (3, length)),
        "attention_mask": (torch.int64, (3, length)),
        "pixel_values": (torch.uint8, (2, 3, 3, SIDE, SIDE)),
        "view_mask": (torch.bool, (2, 3)),
        "scene_index": (torch.int64, (3,)),
        "geometry_mask": (torch.bool, (2,)),
        "ref_from_cam": (torch.float32, (2, 3, 4, 4)),
        "intrinsics": (torch.float32, (2, 3, 3, 3)),
        "depth_hist": (torch.float32, (2, 3, 16)),
        "patch_points": (torch.float32, (2, 3, patches, 3)),
        "patch_points_mask": (torch.bool, (2, 3, patches)),
        "world_from_ref": (torch.float32, (2, 4, 4)),
    }
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == table
    assert set(batch) == set(processor.model_input_names)
    assert batch["geometry_mask"].tolist() == [True, False]
    assert batch["view_mask"].tolist() == [[True, True, True], [True, True, False]]
    counts = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert counts == [13, 10, 13], "10 latents, and 3 geometry tokens where cameras are known"
    assert counts[:2] == [processor.num_visual_tokens(3, True), processor.num_visual_tokens(2, False)]
    eye = torch.eye(4)
    assert torch.equal(batch["ref_from_cam"][1], eye.expand(3, 4, 4))
    assert torch.equal(batch["intrinsics"][1], eye[:3, :3].expand(3, 3, 3))
    assert not any(batch[key][1].any() for key in ("depth_hist", "patch_points", "patch_points_mask"))
    assert batch["world_from_ref"][1].isnan().all() and batch["world_from_ref"][0].isfinite().all()


def test_prompts_are_padded_left_and_answers_right(processor):
    scene = make_scene(2)
    texts = [chat(processor), chat(processor, question="Where is it?")]
    prompts = batch_of(processor, scene, text=texts)
    assert prompts["attention_mask"][:, -1].all() and not prompts["attention_mask"][1, 0]
    assert "labels" not in prompts
    batch = batch_of(processor, scene, text=texts, answers=["dark brown", ACTION])
    assert batch["attention_mask"][:, 0].all() and not batch["attention_mask"][0, -1]
    tokenizer = processor.tokenizer
    for row, answer in enumerate(["dark brown", ACTION]):
        labels = batch["labels"][row]
        assert tokenizer.decode(labels[labels != -100]) == answer + "<|im_end|>"
        length = int(batch["attention_mask"][row].sum())
        assert torch.equal(labels[labels != -100], batch["input_ids"][row, (labels != -100)])
        assert (labels[length:] == -100).all() and labels[length - 1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        assert torch.equal(batch["input_ids"][row, : len(prompt)], prompt)
    assert batch_of(processor, scene, text=texts, padding_side="right")["attention_mask"][:, 0].all()


def test_the_text_around_the_placeholder_is_kept(processor):
    batch = batch_of(processor, make_scene(2), text=chat(processor))
    repeated = chat(processor).replace("<|image_pad|>", "<|image_pad|>" * 12)
    assert processor.tokenizer.decode(batch["input_ids"][0]) == repeated
    assert processor.tokenizer(repeated)["input_ids"] == batch["input_ids"][0].tolist()


def test_rows_find_their_scene(processor):
    scene = make_scene(1)
    one, text = {"images": scene["images"]}, chat(processor)
    assert batch_of(processor, one, text=[text] * 3)["scene_index"].tolist() == [0, 0, 0]
    assert batch_of(processor, one, one, text=[text] * 2)["scene_index"].tolist() == [0, 1]
    index = torch.tensor([1, 1, 0])
    assert batch_of(processor, one, one, text=[text] * 3, scene_index=index)["scene_index"].tolist() == [1, 1, 0]


def test_cameras_are_told_in_the_frame_of_view_0(processor):
    scene = make_scene(3)
    batch = batch_of(processor, scene, text=chat(processor))
    ref = ref_from_world(scene["world_from_cam"][0])
    assert np.allclose(batch["ref_from_cam"][0], ref @ scene["world_from_cam"], atol=1e-6)
    assert np.allclose(batch["world_from_ref"][0], invert_rigid(ref), atol=1e-6)
    elsewhere = {**scene, "world_from_cam": turn_and_move(1.3, (40, -7, 2)) @ scene["world_from_cam"]}
    moved = batch_of(processor, elsewhere, text=chat(processor))
    for key in batch:
        if key != "world_from_ref":
            assert torch.allclose(batch[key].double(), moved[key].double(), atol=1e-5), key


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch", "vggt_crop", "vggt_pad", "vggt_square"])
@pytest.mark.parametrize("depth_scale", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (56, 56)])
def test_image_depth_and_intrinsics_stay_in_step(mode, depth_scale, height, width):
    """A camera looks squarely at a wall 3 m ahead, with depth in a small window alone, whose place on it is known."""
    x, y, half = width // 2 + 14, height // 2 - 12, 6
    k = np.array([[150.0, 0, width / 2], [0, 150, height / 2], [0, 0, 1]])
    depth = np.zeros((height, width), np.float32)
    depth[y - half : y + half, x - half : x + half] = 3.0
    batch = make_processor(mode=mode)(
        images=np.zeros((1, height, width, 3), np.uint8),
        intrinsics=k[None],
        world_from_cam=camera((2, 1, 1.5), (1, 0, 0))[None],
        depth=depth[None, ::depth_scale, ::depth_scale],
    )
    points = batch["patch_points"][0, 0][batch["patch_points_mask"][0, 0]].numpy()
    middle, reach = np.array([14, 12]) / 150 * 3.0, (half + 1) / 150 * 3.0
    assert len(points) and np.allclose(points[:, 1], 3.0)
    assert np.abs(points[:, [0, 2]] - middle).max() < reach
    assert np.abs(points[:, [0, 2]].mean(axis=0) - middle).max() < reach / 2


def test_padding_has_no_points():
    scene = make_scene(1, size=(120, 200))
    batch = batch_of(make_processor(mode="pad"), scene)
    assert torch.equal(batch["patch_points_mask"], batch["patch_mask"]) and not batch["patch_mask"].all()


def test_depth_of_any_kind_is_metres(processor, tmp_path):
    scene = make_scene(1)
    millimetres = np.round(scene["depth"][0] * 1000).astype(np.uint16)
    millimetres[:14, :14] = 0
    path = tmp_path / "depth.png"
    Image.fromarray(millimetres).save(path)
    metres = millimetres.astype(np.float32) / 1000
    with_holes = np.where(metres > 0, metres, np.nan)
    kinds = [metres, with_holes, millimetres, torch.from_numpy(metres), Image.open(path), Image.fromarray(metres)]
    kinds += [path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}]
    reference = batch_of(processor, {**scene, "depth": metres[None]})
    assert reference["patch_points_mask"][0, 0].tolist() == [False] + [True] * 15
    assert reference["depth_hist"].sum() == pytest.approx(1)
    for kind in kinds:
        found = batch_of(processor, {**scene, "depth": [kind]})
        assert torch.allclose(found["patch_points"], reference["patch_points"], atol=1e-5), type(kind)
    none = batch_of(processor, {**scene, "depth": [None]})
    assert none["geometry_mask"].all() and not none["depth_hist"].any() and not none["patch_points_mask"].any()


def test_a_lone_scene_needs_no_list(processor):
    scene = make_scene(2)
    text = chat(processor)
    bare, listed = processor(text=text, **scene), batch_of(processor, scene, text=text)
    assert all(torch.equal(bare[key], listed[key]) for key in listed)
    tensors = {key: torch.from_numpy(value) for key, value in scene.items()}
    as_tensors = processor(text=text, **tensors)
    assert all(torch.equal(as_tensors[key], listed[key]) for key in listed)


def test_answers_do_not_depend_on_batch_mates(processor):
    scenes = [make_scene(2, seed=1), make_scene(4, seed=2)]
    together = batch_of(processor, *scenes)
    for index, scene in enumerate(scenes):
        alone = batch_of(processor, scene)
        for key, value in alone.items():
            views = slice(None, value.shape[1]) if key not in ("geometry_mask", "world_from_ref") else slice(None)
            row = together[key][index : index + 1]
            assert torch.equal(row if row.ndim == 1 else row[:, views], value), key


def test_cached_encoder_output_needs_only_the_number_of_views(processor):
    scene = make_scene(3)
    text, images = chat(processor), scene.pop("images")
    cached = processor(num_views=3, text=text, **scene)
    assert "pixel_values" not in cached
    full = processor(images=images, text=text, **scene)
    assert all(torch.equal(cached[key], full[key]) for key in cached)


def test_blind_rows_hold_text_alone(processor):
    batch = processor(text=[chat(processor, num_views=0), chat(processor, num_views=0, question="Where?")])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert not (batch["input_ids"] == processor.image_token_id).any()


def test_geometry_tokens_can_be_switched_off():
    processor = make_processor(use_geometry_tokens=False)
    batch = batch_of(processor, make_scene(3), text=chat(processor))
    assert (batch["input_ids"] == processor.image_token_id).sum() == processor.num_visual_tokens(3, True) == 10


def test_numpy_batches(processor):
    scene = make_scene(1)
    arrays, tensors = (batch_of(processor, scene, text=chat(processor), return_tensors=kind) for kind in ("np", "pt"))
    assert all(isinstance(value, np.ndarray) and np.array_equal(value, tensors[key]) for key, value in arrays.items())


def test_casting_a_batch_spares_cameras_points_and_depth(processor):
    batch = batch_of(processor, make_scene(2), text=chat(processor))
    before = {key: value.clone() for key, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].float() / 255
    for arguments, keywords in (((torch.bfloat16,), {}), ((), {"dtype": torch.float16}), (("cpu", torch.bfloat16), {})):
        cast = batch.to(*arguments, **keywords)
        assert cast is batch and cast["pixel_values"].dtype in (torch.bfloat16, torch.float16)
        for key in set(FLOAT32_KEYS) & set(before):
            assert cast[key].dtype == torch.float32 and torch.equal(cast[key].nan_to_num(), before[key].nan_to_num())
        assert cast["input_ids"].dtype == torch.int64
    assert batch.to("meta")["intrinsics"].device.type == "meta"
    assert pickle.loads(pickle.dumps(cast))["intrinsics"].dtype == torch.float32


def refused(change: dict[str, Any], message: str, name: str) -> Any:
    return pytest.param(change, message, id=name)


def nan_at(array: np.ndarray, *index: int) -> np.ndarray:
    array = array.copy()
    array[index] = np.nan
    return array


GOOD = make_scene(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        refused({"images": None}, "belong to images, and there are none", "cameras-without-images"),
        refused({"images": make_scene(7)["images"]}, "scene 0 has 7 views, at most 6", "too-many-views"),
        refused({"intrinsics": None}, "scene 0 has world_from_cam but no intrinsics", "half-a-camera"),
        refused({"world_from_cam": None}, "scene 0 has intrinsics but no world_from_cam", "other-half"),
        refused({"world_from_cam": None, "intrinsics": None}, "has depth but no cameras", "depth-alone"),
        refused({"world_from_cam": GOOD["world_from_cam"][:2]}, r"has 3 views, but world_from_cam .* \(2, 4", "count"),
        refused({"intrinsics": GOOD["intrinsics"][:2]}, r"has 3 views, but intrinsics .* \(2, 3, 3\)", "count-of-k"),
        refused({"intrinsics": INTRINSICS}, "intrinsics .* one a view", "one-k-for-all"),
        refused({"depth": GOOD["depth"][:2]}, "has 3 views, but depth has 2 maps", "count-of-depth"),
        refused({"depth": GOOD["depth"][:, :40]}, "depth of view 0 of scene 0 is 56 x 40 pixels beside", "aspect"),
        refused({"depth": -GOOD["depth"]}, "depth of view 0 of scene 0 spans -", "negative-depth"),
        refused({"depth": GOOD["depth"] * 1000}, "floating depth is metres, integer depth millimetres", "millimetres"),
        refused({"depth": [Image.new("RGB", (56, 56))] * 3}, "pixel mode RGB, wanted 16-bit", "colour-as-depth"),
        refused({"depth": [b"abc"] * 3}, "depth of view 0 of scene 0 cannot be decoded", "broken-depth"),
        refused(
            {"world_from_cam": nan_at(GOOD["world_from_cam"], 1, 0, 3)},
            "scene 0: world_from_cam of view 1 holds a non-finite value",
            "non-finite",
        ),
        refused({"world_from_cam": 2 * GOOD["world_from_cam"]}, "world_from_cam of view 0 has the last row", "scaled"),
        refused(
            {"world_from_cam": GOOD["world_from_cam"] @ np.diag([1, -1, 1, 1])},
            "world_from_cam of view 0 is not rigid",
            "mirrored",
        ),
        refused({"intrinsics": np.zeros((3, 3, 3))}, "intrinsics of view 0 is singular: fx = 0, fy = 0", "singular"),
        refused({"text": ""}, "text of row 0 is empty", "empty-text"),
        refused({"text": "  "}, "text of row 0 is '  ', wanted words", "blank-text"),
        refused({"text": [QUESTION]}, r"row 0 holds 0 <\|image_pad\|>, wanted 1", "no-placeholder"),
        refused({"text": "<|image_pad|>" * 2}, r"row 0 holds 2 <\|image_pad\|>, wanted 1", "two-placeholders"),
        refused({"scene_index": [1]}, r"scene_index is \[1\], wanted 1 numbers, .* from 0 to 0", "scene-index"),
        refused({"scene_index": [0, 0]}, "scene_index", "scene-index-length"),
        refused({"answers": ["a", "b"]}, "answers has 2 entries for 1 rows", "answers"),
        refused({"answers": [""]}, "answer of row 0 is empty", "empty-answer"),
        refused({"answers": ["<|im_end|>"]}, "answer of row 0 holds a control token", "control-token"),
        refused({"padding_side": "both"}, "padding_side is 'both'", "padding-side"),
        refused({"padding": False}, "always padded", "no-padding"),
        refused({"videos": ["a.mp4"]}, "pass the frames of a video as images", "videos"),
        refused({"num_views": 3}, "not both", "num-views-and-images"),
        refused({"text": None, "answers": ["a"]}, "answers belong to text", "answers-alone"),
    ],
)
def test_bad_input_is_refused(processor, change, message):
    with pytest.raises(ValueError, match=message):
        processor(**{**GOOD, "text": chat(processor), **change})


def test_more_bad_input_is_refused(processor):
    text, image = chat(processor), GOOD["images"][:1]
    with pytest.raises(ValueError, match="nothing to do"):
        processor()
    with pytest.raises(ValueError, match="3 rows of text and 2 scenes: say by scene_index"):
        processor(images=[image, image], text=[text] * 3)
    with pytest.raises(ValueError, match="intrinsics holds 3 entries for 2 scenes"):
        processor(images=[image, image], intrinsics=[None] * 3, text=[text] * 2)
    with pytest.raises(ValueError, match=r"row 1 holds 0 <\|image_pad\|>, wanted 1: .* batch of their own"):
        processor(images=[image, image], text=[text, chat(processor, num_views=0)])
    with pytest.raises(ValueError, match=r"row 0 holds 1 <\|image_pad\|>, wanted 0"):
        processor(text=text)
    with pytest.raises(ValueError, match="text has no rows"):
        processor(images=image, text=[])
    with pytest.raises(ValueError, match="mode vggt_crop has none: pass images"):
        make_processor(mode="vggt_crop")(num_views=2, text=text)
    with pytest.raises(ValueError, match=r"num_views is \[0\]"):
        processor(num_views=0, text=text)
    with pytest.raises(FileNotFoundError, match=r"there is no file missing\.png"):
        processor(**{**GOOD, "depth": ["missing.png"] * 3})
    with pytest.raises(TypeError, match="do_rescale"):
        processor(images=image, text=text, do_rescale=True)


def test_a_long_question_is_refused_with_its_count(processor):
    text = chat(processor, question="Is it red? " * 20)
    length = batch_of(processor, GOOD, text=text)["input_ids"].shape[1]
    assert batch_of(processor, GOOD, text=text, max_length=length)["input_ids"].shape[1] == length
    message = rf"row 1 has {length} tokens \(13 visual, {length - 13} of text, 0 of answer\), 5 more than max_length"
    with pytest.raises(ValueError, match=message):
        batch_of(processor, GOOD, text=[chat(processor), text], max_length=length - 5)
    with pytest.raises(ValueError, match=r"of answer.* more than max_length 8192: nothing is cut off"):
        batch_of(processor, GOOD, text=text, answers="red " * 9000)


def test_images_turned_by_exif_cannot_have_cameras(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(GOOD["images"][0]).save(path, exif=exif)
    scene = {**GOOD, "images": [GOOD["images"][0], path, GOOD["images"][2]]}
    with pytest.raises(ValueError, match="view 1 of scene 0 is stored in another EXIF orientation"):
        processor(**scene, text=chat(processor))
    assert processor(images=scene["images"], text=chat(processor))["pixel_values"].shape[1] == 3


def test_the_chat_is_chatml_with_one_placeholder(processor):
    situation = "I am standing by the bed."
    text = chat(processor, num_views=4, situation=situation, task="sqa3d")
    assert text == (
        "<|im_start|>system\nYou see views of one room. Answer in a few words.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{situation} {QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "<|image_pad|>" not in chat(processor, num_views=0)
    assert "JSON action in metres" in chat(processor, task="rooms_actions")
    messages = processor.conversation(QUESTION, num_views=2)
    messages += [{"role": "assistant", "content": "red"}, {"role": "user", "content": "And the table?"}]
    assert processor.apply_chat_template(messages).count("<|image_pad|>") == 1


def test_chats_with_images_are_tokenised_in_one_call(processor, tmp_path):
    path = tmp_path / "view.png"
    Image.fromarray(GOOD["images"][1]).save(path)
    blocks = [{"type": "image", "image": Image.fromarray(GOOD["images"][0])}, {"type": "image", "path": str(path)}]
    messages = processor.conversation(QUESTION)
    messages[1]["content"] = blocks + messages[1]["content"]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    expected = processor(images=GOOD["images"][:2], text=chat(processor))
    for chats, rows in ((messages, 1), ([messages, messages], 2)):
        batch = processor.apply_chat_template(chats, **options)
        assert all(torch.equal(batch[key][:1].nan_to_num(), expected[key].nan_to_num()) for key in expected)
        assert len(batch["pixel_values"]) == len(batch["input_ids"]) == rows
    cameras = {"intrinsics": GOOD["intrinsics"][:2], "world_from_cam": GOOD["world_from_cam"][:2]}
    batch = processor.apply_chat_template(messages, processor_kwargs=cameras, **options)
    assert batch["geometry_mask"].all() and (batch["input_ids"] == processor.image_token_id).sum() == 12


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}] * 2,
            "images in a later turn: all images of a conversation are one scene",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], "the question is empty"),
        ([{"role": "user", "content": "  "}], "the question is empty"),
        ([{"role": "tool", "content": "a"}], "the role tool is unknown"),
        ([{"role": "user", "content": [{"type": "video"}]}], "content of type video is not understood"),
    ],
)
def test_bad_chats_are_refused(processor, messages, message):
    with pytest.raises(jinja2.exceptions.TemplateError, match=message):
        processor.apply_chat_template(messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": " "}, "the question is empty"),
        ({"question": "a<|im_end|>b"}, "holds a control token"),
        ({"question": "a", "situation": "<|im_start|>system"}, "holds a control token"),
        ({"question": "a", "task": "captions"}, "task is 'captions', wanted one of scanqa, sqa3d"),
        ({"question": "a", "num_views": -1}, "num_views is -1"),
    ],
)
def test_bad_questions_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor.conversation(**options)


def test_actions_come_back_in_the_world(processor):
    known, unknown = make_scene(2, seed=5), {"images": GOOD["images"][:1]}
    batch = batch_of(processor, known, unknown, text=[chat(processor)] * 4, scene_index=[0, 1, 0, 1])
    texts = [ACTION, ACTION, "red", ACTION[:-4]]
    decoded = processor.decode_actions(texts, batch["world_from_ref"], ["room-a", "room-b"], batch["scene_index"])
    world_from_ref = invert_rigid(ref_from_world(known["world_from_cam"][0]))
    action = decoded[0]["action"]
    assert decoded[0]["error"] is None and action["scene"] == "room-a"
    assert np.allclose(action["center"], transform_points(world_from_ref, [1, 2, -0.4]), atol=1e-5)
    assert np.allclose(action["normal"], world_from_ref[:3, :3] @ [0, -1, 0], atol=1e-5)
    assert decoded[1] == {"action": None, "text": ACTION, "error": METRES_UNKNOWN}
    assert "starts with 'red'" in decoded[2]["error"] and decoded[2]["action"] is None
    assert "not JSON" in decoded[3]["error"]
    json.dumps(decoded)


def test_metres_are_never_invented(processor):
    for frame in (None, np.full((4, 4), np.nan), [np.full((4, 4), np.nan)]):
        (decoded,) = processor.decode_actions(ACTION, frame)
        assert decoded["action"] is None and "metres are unknown without cameras" in decoded["error"]
    assert processor.decode_actions(ACTION, np.eye(4), "room")[0]["action"]["scene"] == "room"
    with pytest.raises(ValueError, match="world_from_ref holds 2 entries for 3 texts"):
        processor.decode_actions([ACTION] * 3, np.stack([np.eye(4)] * 2))
    with pytest.raises(ValueError, match="scene_ids holds 2 entries for 3 texts"):
        processor.decode_actions([ACTION] * 3, np.eye(4), ["a", "b"])
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        processor.decode_actions(ACTION, np.eye(3))


def test_a_tokenizer_of_another_family_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != "<|image_pad|>"]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    with pytest.raises(ValueError, match=r"lacks <\|image_pad\|>: use one of the Qwen family"):
        VggtQwen3Processor(VggtQwen3ImageProcessor(), other)


def test_saving_and_loading_keeps_every_option(tmp_path):
    processor = make_processor(mode="pad", use_geometry_tokens=False)
    processor.save_pretrained(tmp_path)
    loaded = VggtQwen3Processor.from_pretrained(tmp_path)
    assert type(loaded.image_processor) is VggtQwen3ImageProcessor
    assert (loaded.num_latents, loaded.use_geometry_tokens, loaded.image_processor.mode) == (10, False, "pad")
    assert loaded.chat_template == processor.chat_template
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processing_vggt_qwen3.VggtQwen3Processor"}
    code = {path.name for path in Path(__file__).parents[1].glob("processing/*_vggt_qwen3.py")}
    assert code <= {path.name for path in tmp_path.iterdir()}, "the folder carries the code that reads it"


ELSEWHERE = """
import importlib.util, sys
import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, AutoProcessor

source, inputs, output = sys.argv[1:]
assert importlib.util.find_spec("processing") is None, "the project is importable; this proves nothing"
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
scene = dict(np.load(inputs))
messages = processor.conversation("What color is the chair?", num_views=3)
text = processor.apply_chat_template(messages, add_generation_prompt=True)
batch = processor(text=text, **scene)
decoded = processor.decode_actions("red", batch["world_from_ref"])
assert "wanted '{'" in decoded[0]["error"]
torch.save(dict(batch), output)
try:
    images = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
except ImportError as error:
    print("AutoImageProcessor of this transformers", transformers.__version__, "does not load:", error)
else:
    assert np.array_equal(images(scene["images"])["pixel_values"], batch["pixel_values"])
processor.save_pretrained(sys.argv[3] + ".again")
"""


@pytest.mark.parametrize("through_the_hub_cache", [False, True])
def test_a_fresh_process_elsewhere_makes_the_same_batch(processor, tmp_path, through_the_hub_cache):
    """Offline, from another folder, without the project: the code comes with the checkpoint."""
    saved = tmp_path / "saved"
    processor.save_pretrained(saved)
    source = str(saved)
    if through_the_hub_cache:
        repository, revision, source = tmp_path / "hub" / "models--someone--rooms", "0" * 40, "someone/rooms"
        shutil.copytree(saved, repository / "snapshots" / revision)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
        (repository / "snapshots" / revision / "config.json").write_text('{"model_type": "vggt_qwen3"}')
    np.savez(tmp_path / "scene.npz", **GOOD)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", ELSEWHERE, source, str(tmp_path / "scene.npz"), str(tmp_path / "batch.pt")]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    if "does not load" in result.stdout:
        warnings.warn(result.stdout, stacklevel=1)
    expected = processor(text=chat(processor), **GOOD)
    found = torch.load(tmp_path / "batch.pt", weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (tmp_path / "batch.pt.again" / "scene_vggt_qwen3.py").is_file(), "what was loaded can be saved again"
