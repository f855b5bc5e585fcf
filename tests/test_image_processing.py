"""Photographs in: any kind, size and orientation; one size out, and where every pixel went."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from processing import VggtQwen3ImageProcessor
from processing.image_processing_vggt_qwen3 import folder_images

FIXTURES = Path(__file__).parent / "fixtures" / "vggt"
LOADER_CASES = json.loads((FIXTURES / "P_preprocess.json").read_text())["cases"]


def picture(width: int = 60, height: int = 44, seed: int = 0) -> np.ndarray:
    """A smooth random photograph, [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(array: np.ndarray, suffix: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, suffix, **options)
    return buffer.getvalue()


def pixels(processor: VggtQwen3ImageProcessor, *views) -> np.ndarray:
    return processor(list(views))["pixel_values"][0]


@pytest.mark.parametrize("name", LOADER_CASES)
def test_loader_modes_equal_the_official_loader(name, tmp_path):
    """To the last bit, from PNG files as the official loader takes them."""
    data, case = load_file(FIXTURES / "P_preprocess.safetensors"), LOADER_CASES[name]
    files = []
    for file in case["files"]:
        array = data[f"src.{file}"]
        files.append(tmp_path / f"{file}.png")
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(files[-1])
    size, mode = (518, f"vggt_{case['mode']}") if "mode" in case else (224, "vggt_square")
    batch = VggtQwen3ImageProcessor(size=size, mode=mode)(files)
    found = batch["pixel_values"][0]
    assert list(found.shape) == case["shape"]
    if "mean" in case:
        assert np.isclose(found.mean(dtype=np.float64) / 255, case["mean"], atol=1e-7)
    (key,) = [key for key in data if key.startswith("out") and key.endswith(f".{name}")]
    step = int(key.removeprefix("out").split(".")[0].removeprefix("_sub") or 1)
    assert np.array_equal(found[..., ::step, ::step], data[key])
    if name == "square224":
        scale_x, scale_y, left, top = batch["pixel_transform"][0].T
        height, width = batch["source_size"][0].T
        corners = np.stack([left, top, left + scale_x * width, top + scale_y * height, width, height], axis=1)
        assert np.allclose(corners, data["square224.coords"])


def test_loader_modes_round_halves_to_even():
    """35 of 56 pixels are 2.5 patches: 2, as Python's round has it."""
    for mode, height in (("vggt_crop", 28), ("vggt_pad", 28)):
        batch = VggtQwen3ImageProcessor(size=56, mode=mode)(np.zeros((35, 56, 3), np.uint8))
        assert batch["pixel_transform"][0, 0, 1] == height / 35


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch", "vggt_crop", "vggt_pad", "vggt_square"])
@pytest.mark.parametrize(("width", "height"), [(200, 120), (120, 200), (112, 112), (333, 112)])
def test_the_pixel_transform_says_where_a_point_went(mode, width, height):
    """A bright dot is found again where the transform puts its centre."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    x, y = width // 2 + 13, height // 2 - 11
    array[y - 4 : y + 5, x - 4 : x + 5] = 255
    batch = VggtQwen3ImageProcessor(size=112, mode=mode)(Image.fromarray(array))
    scale_x, scale_y, offset_x, offset_y = batch["pixel_transform"][0, 0]
    found = batch["pixel_values"][0, 0, 0].astype(float)
    expected_x, expected_y = scale_x * (x + 0.5) + offset_x, scale_y * (y + 0.5) + offset_y
    window = np.zeros_like(found)
    window[max(0, int(expected_y) - 10) : int(expected_y) + 10, max(0, int(expected_x) - 10) : int(expected_x) + 10] = 1
    weights = found * window
    rows, columns = np.mgrid[: found.shape[0], : found.shape[1]] + 0.5
    assert abs((weights * columns).sum() / weights.sum() - expected_x) < 0.1
    assert abs((weights * rows).sum() / weights.sum() - expected_y) < 0.1


def test_crop_covers_and_keeps_the_middle():
    array = picture(300, 200)
    expected = Image.fromarray(array).resize((168, 112), Image.Resampling.BICUBIC).crop((28, 0, 140, 112))
    found = pixels(VggtQwen3ImageProcessor(size=112), Image.fromarray(array))[0]
    assert np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 1
    wide = VggtQwen3ImageProcessor(size={"height": 56, "width": 112})(array)
    assert wide["pixel_values"].shape == (1, 1, 3, 56, 112)
    assert wide["pixel_transform"][0, 0, 0] == wide["pixel_transform"][0, 0, 1]


def test_pad_masks_whole_patches_of_white():
    batch = VggtQwen3ImageProcessor(size=112, mode="pad")([picture(200, 100), picture(100, 200), picture(80, 80)])
    mask = batch["patch_mask"][0].reshape(3, 8, 8)
    expected = np.zeros((8, 8), dtype=bool)
    expected[2:6] = True
    assert np.array_equal(mask[0], expected) and np.array_equal(mask[1], expected.T) and mask[2].all()
    patches = batch["pixel_values"][0].reshape(3, 3, 8, 14, 8, 14).transpose(0, 2, 4, 1, 3, 5)
    assert (patches[~mask] == 255).all()
    assert "patch_mask" not in VggtQwen3ImageProcessor(size=112)(picture())


def test_an_image_of_the_right_size_is_not_touched():
    array = picture(112, 112)
    for mode in ("crop", "pad", "stretch"):
        assert np.array_equal(pixels(VggtQwen3ImageProcessor(size=112, mode=mode), array)[0], array.transpose(2, 0, 1))


def test_every_kind_of_view_gives_the_same_pixels(tmp_path):
    array = picture()
    path = tmp_path / "view.png"
    path.write_bytes(encoded(array))
    with Image.open(path) as lazily_opened:
        kinds = [
            Image.fromarray(array),
            lazily_opened,
            array,
            np.ascontiguousarray(array.transpose(2, 0, 1)),
            array.astype(np.float32) / 255,
            array / 255.0,
            torch.from_numpy(array.copy()),
            torch.from_numpy(array.copy()).permute(2, 0, 1),
            torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
            path,
            str(path),
            path.read_bytes(),
            {"bytes": path.read_bytes(), "path": None},
            {"bytes": None, "path": str(path)},
            "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        ]
        found = pixels(VggtQwen3ImageProcessor(size=56), *kinds)
    for index, kind in enumerate(kinds):
        assert np.array_equal(found[index], found[0]), f"kind {index}: {type(kind)}"


def test_grey_palette_and_transparent_images_become_rgb_on_white():
    grey = np.full((30, 40), 90, dtype=np.uint8)
    transparent = np.zeros((30, 40, 4), dtype=np.uint8)
    half = np.full((30, 40, 4), [0, 0, 0, 128], dtype=np.uint8)
    palette = Image.fromarray(np.full((30, 40, 3), [10, 20, 30], dtype=np.uint8)).convert(
        "P", palette=Image.Palette.ADAPTIVE
    )
    found = pixels(
        VggtQwen3ImageProcessor(size=28),
        *(Image.fromarray(grey), grey, grey[..., None], Image.fromarray(transparent), transparent, half, palette),
        Image.fromarray(np.full((30, 40, 3), 9, dtype=np.uint8)).convert("CMYK"),
    )
    assert (found[:3] == 90).all()
    assert (found[3:5] == 255).all()
    assert (found[5] == 127).all()
    assert np.array_equal(found[6, :, 0, 0], [10, 20, 30])
    assert (np.abs(found[7].astype(int) - 9) <= 1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_told(orientation, tmp_path):
    array = picture(80, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(array).save(path, exif=exif)
    turned = {1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.transpose(1, 0, 2)}
    turned |= {6: np.rot90(array, -1), 7: array[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(array)}
    upright = turned[orientation]
    processor = VggtQwen3ImageProcessor(size=56, mode="stretch")
    batch = processor([path])
    assert np.array_equal(batch["pixel_values"], processor([np.ascontiguousarray(upright)])["pixel_values"])
    assert batch["exif_turned"][0, 0] == (orientation != 1)
    assert batch["source_size"][0, 0].tolist() == list(upright.shape[:2])


def test_scenes_of_different_length_are_padded_with_absent_views():
    views = [picture(seed=seed) for seed in range(5)]
    batch = VggtQwen3ImageProcessor(size=56)([views[:2], views[2:]], return_tensors="pt")
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (2, 3, 3, 56, 56)
    assert batch["view_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert not batch["pixel_values"][0, 2].any()
    single = VggtQwen3ImageProcessor(size=56)(views[4])
    assert np.array_equal(single["pixel_values"][0, 0], batch["pixel_values"][1, 2])


def test_arrays_of_views_and_scenes_are_taken_apart():
    views = np.stack([picture(seed=seed) for seed in range(4)])
    processor = VggtQwen3ImageProcessor(size=56)
    assert processor(views)["pixel_values"].shape[:2] == (1, 4)
    assert processor(views.reshape(2, 2, *views.shape[1:]))["pixel_values"].shape[:2] == (2, 2)
    assert processor([views, views[:1]])["view_mask"].tolist() == [[True] * 4, [True, False, False, False]]


def test_a_folder_is_a_scene_in_natural_order(tmp_path):
    for index in (10, 2, 1):
        (tmp_path / f"frame-{index}.PNG").write_bytes(encoded(picture(seed=index)))
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.stem for path in folder_images(tmp_path)] == ["frame-1", "frame-2", "frame-10"]
    processor = VggtQwen3ImageProcessor(size=56)
    expected = processor([picture(seed=index) for index in (1, 2, 10)])["pixel_values"]
    for images in (tmp_path, str(tmp_path), [tmp_path]):
        assert np.array_equal(processor(images)["pixel_values"], expected)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"the folder {tmp_path} holds no image"):
        VggtQwen3ImageProcessor()(tmp_path)


def test_broken_files_are_named(tmp_path):
    whole = {"JPEG": encoded(picture(300, 200), "JPEG"), "PNG": encoded(picture(300, 200))}
    for suffix, data in whole.items():
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[: len(data) // 2])
        for images in ([picture(), path], [[picture()], [path, path]]):
            with pytest.raises(
                ValueError, match=rf"\({path}\) cannot be decoded: .*; the file is damaged or cut short"
            ):
                VggtQwen3ImageProcessor()(images)
        with Image.open(path) as lazily_opened, pytest.raises(ValueError, match=rf"\({path}\) cannot be decoded"):
            VggtQwen3ImageProcessor()(lazily_opened)
    text = tmp_path / "text.jpg"
    text.write_text("this is no image")
    with pytest.raises(ValueError, match=rf"view 1 of scene 0 \({text}\) is no image that can be read"):
        VggtQwen3ImageProcessor()([picture(), text])
    text.write_bytes(b"")
    with pytest.raises(ValueError, match="is no image that can be read"):
        VggtQwen3ImageProcessor()(text)
    with pytest.raises(ValueError, match="view 0 of scene 0 is no image"):
        VggtQwen3ImageProcessor()([b"abc"])
    with pytest.raises(FileNotFoundError, match=r"view 0 of scene 0 \(missing\.jpg\): there is no such file"):
        VggtQwen3ImageProcessor()("missing.jpg")
    with pytest.raises(ValueError, match="neither bytes nor path"):
        VggtQwen3ImageProcessor()([{"bytes": None, "path": None}])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "no image: pass at least one view"),
        ([], "images is empty"),
        ([[picture()], []], "scene 1 has no image"),
        ([picture(), [picture()]], "mixes views and scenes: entry 0"),
        (7, "images is a int"),
        ([picture(), 7], "view 1 of images is a int"),
        ([[picture()], [None]], "view 0 of scene 1 is a NoneType"),
        ([picture()] * 5, "scene 0 has 5 views, at most 4 are taken"),
        (np.zeros((13, 40, 3), np.uint8), "is 40 x 13 pixels, wanted sides of at least 14"),
        (Image.new("RGB", (1, 1)), "is 1 x 1 pixels"),
        (np.zeros((20, 300, 3), np.uint8), "aspect of at most 10 to 1"),
        (Image.new("L", (12_000, 9_000)), "at most 100,000,000 pixels"),
        (np.zeros((40, 40, 5), np.uint8), r"shape \(40, 40, 5\), wanted height x width x channels"),
        (np.zeros((3, 40, 3), np.uint8), r"shape \(3, 40, 3\)"),
        (np.full((40, 40, 3), 17.0), r"floating and not within \[0, 1\]"),
        (np.full((40, 40, 3), np.nan), r"floating and not within \[0, 1\]"),
        (np.zeros((40, 40, 3), np.int64), "dtype int64, wanted uint8"),
        (Image.fromarray(np.zeros((40, 40), np.uint16)), "pixel mode I;16, wanted an 8-bit image"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        VggtQwen3ImageProcessor(size=56, max_views=4)(images)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "fit"}, ValueError, "mode is 'fit', wanted one of crop, pad"),
        ({"size": 100}, ValueError, "multiples of the patch size 14"),
        ({"size": {"shortest_edge": 112}}, ValueError, "wanted height and width"),
        ({"size": {"height": 112, "width": 140}, "mode": "vggt_pad"}, ValueError, "wants a square size"),
        (
            {"height": 112, "width": 112},
            TypeError,
            "knows size, resample, mode, patch_size, max_views, not height, width",
        ),
        ({"do_normalize": True}, TypeError, "not do_normalize"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        VggtQwen3ImageProcessor(**options)


def test_scenes_of_different_size_do_not_change_each_other():
    processor = VggtQwen3ImageProcessor(size=112, mode="vggt_crop")
    with pytest.raises(ValueError, match="gives these scenes different sizes"):
        processor([[picture(200, 100)], [picture(100, 100)]])
    assert processor([[picture(200, 100), picture(100, 100)]])["pixel_values"].shape[-2:] == (112, 112)


def test_options_survive_saving(tmp_path):
    VggtQwen3ImageProcessor(size={"height": 28, "width": 56}, mode="pad", max_views=3, resample=2).save_pretrained(
        tmp_path
    )
    loaded = VggtQwen3ImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size.height, loaded.size.width, loaded.mode) == (28, 56, "pad")
    assert (loaded.max_views, loaded.resample, loaded.patch_size) == (3, 2, 14)
    assert VggtQwen3ImageProcessor.from_pretrained(tmp_path, mode="stretch").mode == "stretch"
