"""A scene written as plain photographs is read back as it was."""

from __future__ import annotations

import numpy as np
import pytest

from datasets_scripts.export import export_scene, find_scene
from datasets_scripts.photos import read_photos


def test_export_and_read_back(rooms, tmp_path):
    scene = find_scene(rooms)
    export_scene(scene, tmp_path / "photos")
    photos = read_photos(tmp_path / "photos", gravity=(0, 0, -1), scale=1)
    assert photos.frame_ids == scene["frame_ids"]
    np.testing.assert_allclose(photos.world_from_cam, np.asarray(scene["world_from_cam"]), atol=1e-9)
    np.testing.assert_allclose(photos.intrinsics, np.asarray(scene["intrinsics"]), atol=1e-9)
    assert all(depth is not None and depth.shape == (112, 112) for depth in photos.depth)
    with pytest.raises(FileExistsError, match="is not empty"):
        export_scene(scene, tmp_path / "photos")
    with pytest.raises(ValueError, match="no scene nowhere; among its 12 are"):
        find_scene(rooms, "nowhere")
