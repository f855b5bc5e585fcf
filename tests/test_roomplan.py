"""RoomPlan exports: a genuine one, the way there and back, captures with photographs, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.arkit_frames import ARKIT_FROM_CV_CAM
from datasets_scripts.boxes import box_corners
from datasets_scripts.capture import Skips, SourceError
from datasets_scripts.photos import find_photos, read_photos
from datasets_scripts.planes import find_planes, open_planes
from datasets_scripts.roomplan import (
    ZUP_FROM_YUP,
    camel_of,
    main,
    read_roomplan,
    targets_of_actions,
    words_of,
    write_roomplan,
)
from datasets_scripts.roomplan_capture import find_roomplan, open_roomplan
from processing.action_vggt_qwen3 import action_from_targets, action_to_world
from processing.geometry_vggt_qwen3 import invert_rigid, ref_from_world
from tests.layouts import Truth, back_project, millimetres, room_truth, write_image

EXPORT = Path(__file__).parent / "fixtures" / "roomplan" / "captured_structure.json"


@pytest.fixture(scope="module")
def truth() -> Truth:
    return room_truth(2, 4)


def test_a_genuine_export() -> None:
    room = read_roomplan(EXPORT, Skips(True))  # strict: every parent resolves
    groups = ("walls", "doors", "windows", "openings", "floors", "objects")
    assert [len(room.group(name)) for name in groups] == [4, 2, 2, 0, 1, 5]
    (floor,) = room.group("floors")
    assert np.allclose(floor.world_from_item[:3, 2], [0, 0, 1])
    walls = {wall.identifier for wall in room.group("walls")}
    assert all(item.parent in walls for name in ("doors", "windows") for item in room.group(name))
    bottom = min(wall.corners()[:, 2].min() for wall in room.group("walls"))
    assert abs(bottom - floor.world_from_item[2, 3]) < 0.01


def test_planes_of_a_genuine_export_face_the_room() -> None:
    room = read_roomplan(EXPORT, Skips(True))
    middle = room.group("floors")[0].corners().mean(0)
    planes = [target for target in room.targets() if target["kind"] == "plane"]
    assert len(planes) == 8
    for target in planes:
        assert (middle - target["center"]) @ np.asarray(target["axes"])[1] > 0


def test_planes_stored_facing_outwards_face_the_room_all_the_same(tmp_path: Path) -> None:
    """RoomPlan's normals are not always inward: every surface turned by half a turn gives the same targets."""
    export = json.loads(EXPORT.read_text())
    for group in ("walls", "doors", "windows"):
        for item in export[group]:
            turned = np.reshape(item["transform"], (4, 4))
            turned[[0, 2]] *= -1
            item["transform"] = turned.ravel().tolist()
    path = tmp_path / "room.json"
    path.write_text(json.dumps(export))
    for one, other in zip(read_roomplan(EXPORT, Skips(True)).targets(), read_roomplan(path, Skips(True)).targets()):
        assert np.allclose(one["axes"], other["axes"]) and one["label"] == other["label"]


def test_written_and_read_back(tmp_path: Path, truth: Truth) -> None:
    path = tmp_path / "room.json"
    write_roomplan(path, truth.targets)
    room = read_roomplan(path, Skips(True))
    found = room.targets()
    assert len(found) == len(truth.targets)
    corners = {target["label"]: [] for target in found}
    for target in found:
        corners[target["label"]].append(np.sort(box_corners(target).round(4), axis=0))
    for target in truth.targets:
        flat = target | {
            "size": [target["size"][0], 0.0 if is_surface(target) else target["size"][1], target["size"][2]]
        }
        wanted = np.sort(box_corners(flat).round(4), axis=0)
        assert any(np.allclose(wanted, other, atol=1e-3) for other in corners[target["label"]])
    doors = [item for item in room.items if item.group in ("doors", "windows")]
    assert doors and all(item.parent is not None for item in doors)


def is_surface(target: dict) -> bool:
    return target["kind"] == "plane" and target["label"] in ("wall", "door", "window")


def test_actions_become_a_room(tmp_path: Path, truth: Truth) -> None:
    """From targets through ref and the world back into a RoomPlan file, by the command line."""
    table = next(target for target in truth.targets if target["kind"] == "object")
    wall = truth.targets[-1]
    lines = []
    for target in (table, wall):
        to_ref = ref_from_world(truth.world_from_cam[0])
        action = action_to_world(action_from_targets("place_anchor", [target], to_ref), invert_rigid(to_ref), "room")
        lines.append(json.dumps({"action": action}))
    lines.append(json.dumps({"action": None, "error": "not JSON"}))
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text("\n".join(lines))
    main([str(predictions), "--output", str(tmp_path / "room.json")])
    found = {target["label"]: target for target in read_roomplan(tmp_path / "room.json", Skips(True)).targets()}
    for target in (table, wall):
        assert np.allclose(found[target["label"]]["center"], target["center"], atol=1e-6)
        assert np.isclose(np.prod(found[target["label"]]["size"]), np.prod(target["size"]))
    with pytest.raises(SystemExit, match="nowhere"):
        main(["nowhere.jsonl", "--output", str(tmp_path / "room.json")])


def test_a_list_of_anchors_becomes_targets(truth: Truth) -> None:
    objects = [target for target in truth.targets if target["kind"] == "object"][:3]
    to_ref = ref_from_world(truth.world_from_cam[0])
    action = action_to_world(action_from_targets("place_anchors", objects, to_ref), invert_rigid(to_ref))
    found = sorted(target["center"] for target in targets_of_actions([action]))
    assert np.allclose(found, sorted(target["center"] for target in objects))


def test_names_of_categories() -> None:
    for words in ("washer dryer", "television", "tv stand"):
        assert words_of(camel_of(words)) == words


def write_capture(root: Path, truth: Truth, *, turns: int = 1, depth: bool = True) -> Path:
    """A capture as scanning apps leave it: photographs as the device was held, cameras in ARKit axes, world Y-up."""
    folder = root / "living-room"
    (folder / "frames").mkdir(parents=True)
    write_roomplan(folder / "room.json", truth.targets)
    for view in range(len(truth)):
        # Held so that one clockwise turn rights it: the stored camera's x axis is the upright one's -y.
        stored_from_upright = np.eye(4)
        intrinsics = truth.intrinsics
        if turns:
            stored_from_upright[:2, :2] = [[0, 1], [-1, 0]]
        camera = truth.world_from_cam[view] @ stored_from_upright.T
        pose = ZUP_FROM_YUP.T @ camera @ ARKIT_FROM_CV_CAM
        record = {"cameraPoseARFrame": pose.ravel().tolist(), "intrinsics": intrinsics.ravel().tolist()}
        (folder / "frames" / f"frame_{view:05d}.json").write_text(json.dumps(record))
        write_image(
            folder / "frames" / f"frame_{view:05d}.jpg", np.ascontiguousarray(np.rot90(truth.images[view], turns))
        )
        if depth:
            stored = np.ascontiguousarray(np.rot90(millimetres(truth.depth_m[view]), turns))
            write_image(folder / "frames" / f"depth_{view:05d}.png", stored)
    return folder


@pytest.mark.parametrize("turns", [0, 1])
def test_a_capture_with_photographs_is_a_scene(tmp_path: Path, truth: Truth, turns: int) -> None:
    write_capture(tmp_path, truth, turns=turns)
    capture = open_roomplan(find_roomplan(tmp_path)["living-room"], Skips(True))
    assert len(capture.targets) == len(truth.targets)
    for index, frame in enumerate(capture.frames):
        assert frame.quarter_turns == turns
        points = back_project(capture.depth_mm(index) / 1000, frame.intrinsics, frame.world_from_cam)
        assert np.abs(points - truth.points(index)).max() < 1e-3


@pytest.mark.parametrize("turns", [0, 1])
def test_a_session_without_roomplan_is_read_as_photographs_with_cameras(
    tmp_path: Path, truth: Truth, turns: int
) -> None:
    frames = write_capture(tmp_path, truth, turns=turns) / "frames"
    scene = read_photos(frames, num_views=2)
    assert len(scene.images) == 2 and scene.images[0].size == (truth.images[0].shape[1], truth.images[0].shape[0])
    views = [int(name) for name in scene.frame_ids]
    for index, view in enumerate(views):
        assert np.abs(np.asarray(scene.images[index], float) - truth.images[view]).mean() < 12
        points = back_project(scene.depth[index], scene.intrinsics[index], scene.world_from_cam[index])
        assert np.abs(points - truth.points(view)).max() < 1e-3
    assert len(find_photos(frames)) == len(truth), "depth maps are no photographs"
    with pytest.raises(ValueError, match=r"metres with Y up.*leave --gravity and --scale out"):
        read_photos(frames, gravity=(0, 0, -1))
    for path in frames.glob("depth_*.png"):
        path.unlink()
    for damaged in (b'{"cameraPoseARFrame": []}', b"\xff"):
        (frames / "frame_00000.json").write_bytes(damaged)
        scene = read_photos(frames)
        assert len(scene.images) == len(truth) - 1 and scene.depth is None
        assert scene.notes == ("1 left out: camera unreadable",)


def test_an_export_without_photographs_says_what_it_is_good_for(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "room.json").write_text(EXPORT.read_text())
    with pytest.raises(SourceError, match="can be drawn"):
        find_roomplan(tmp_path)


def changed(**changes: object) -> dict:
    export = json.loads(EXPORT.read_text())
    export["objects"][0] |= changes
    return export


DAMAGED = {
    "transform": changed(transform=[1, 2, 3]),
    "scaled": changed(transform=(2 * np.eye(4)).ravel().tolist()),
    "nan": changed(transform=[float("nan")] * 16),
    "dimensions": changed(dimensions=[1, -1, 1]),
    "huge": changed(dimensions=[1, 1e9, 1]),
    "category": changed(category={}),
    "identifier": changed(identifier=7),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_items_are_counted_or_named(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "room.json"
    path.write_text(json.dumps(DAMAGED[fault]))
    skips = Skips()
    assert len(read_roomplan(path, skips).group("objects")) == 4
    assert skips.counts == {"item unreadable": 1}
    with pytest.raises(SourceError, match=r"room\.json, objects\[0\]"):
        read_roomplan(path, Skips(True))


def test_a_missing_parent_is_counted_or_named(tmp_path: Path) -> None:
    path = tmp_path / "room.json"
    path.write_text(json.dumps(changed(parentIdentifier="nobody")))
    skips = Skips()
    read_roomplan(path, skips)
    assert skips.counts == {"parent not found": 1}
    with pytest.raises(SourceError, match="nobody"):
        read_roomplan(path, Skips(True))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"walls": 3}', '{"rooms": [3]}', "[" * 100000])
def test_files_of_another_shape_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "room.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"room\.json"):
        read_roomplan(path, Skips())


# ---------------------------------------------------------------------------------- planes.json of the predecessor


def write_planes(root: Path, truth: Truth, **changes: object) -> None:
    """A scene in a Y-up frame: every wall, and the floor as a plane that is no anchor."""
    folder = root / "Training" / "47000000"
    (folder / "annotations").mkdir(parents=True)
    back = ZUP_FROM_YUP.T[:3, :3]
    walls = [target for target in truth.targets if target["label"] == "wall"]
    planes = [
        {
            "label": "wall",
            "center": (back @ wall["center"]).tolist(),
            "normal": (back @ np.asarray(wall["axes"])[1]).tolist(),
            "extent": [wall["size"][0], wall["size"][2]],
        }
        for wall in walls
    ]
    planes.append({"label": "floor", "center": [0, 0, 0], "normal": [0, 1, 0], "extent": [3, 4]})
    (folder / "annotations" / "planes.json").write_text(json.dumps(planes))
    cameras = []
    for view in range(len(truth)):
        write_image(folder / f"view_{view}.jpg", truth.images[view])
        pose = (ZUP_FROM_YUP.T @ truth.world_from_cam[view]).tolist()
        cameras.append(
            {"rgb_path": f"view_{view}.jpg", "pose": pose, "intrinsics": truth.intrinsics.tolist()} | changes
        )
    (folder / "cameras.json").write_text(json.dumps(cameras))


def test_planes_and_cameras_are_turned_upright(tmp_path: Path, truth: Truth) -> None:
    write_planes(tmp_path, truth)
    skips = Skips(True)
    capture = open_planes(find_planes(tmp_path)["47000000"], skips, (0, -1, 0))
    assert skips.counts == {"plane that does not stand upright": 1}
    walls = [target for target in truth.targets if target["label"] == "wall"]
    for found, wall in zip(capture.targets, walls):
        assert np.allclose(box_corners(found).mean(0), wall["center"], atol=1e-9)
        assert np.allclose(found["axes"], wall["axes"], atol=1e-9)
    for frame, camera in zip(capture.frames, truth.world_from_cam):
        assert np.allclose(frame.world_from_cam, camera, atol=1e-9)


@pytest.mark.parametrize("path", ["../../../secret.jpg", "{outside}/secret.jpg", "nowhere.jpg"])
def test_photographs_outside_the_root_are_refused(tmp_path: Path, truth: Truth, path: str) -> None:
    write_image(tmp_path / "secret.jpg", truth.images[0])
    root = tmp_path / "root"
    write_planes(root, truth, rgb_path=path.format(outside=tmp_path))
    scene, skips = find_planes(root)["47000000"], Skips()
    assert (scene.folder / "../../../secret.jpg").is_file()
    with pytest.raises(SourceError, match="no photograph"):
        open_planes(scene, skips, (0, -1, 0))
    assert skips.counts == {"camera unreadable": len(truth)}
    assert ("refused" in skips.examples["camera unreadable"][0]) == ("secret" in path)


def test_intrinsics_of_another_size_are_refused(tmp_path: Path, truth: Truth) -> None:
    """An app stored smaller photographs than the camera took."""
    larger = np.diag([2.0, 2.0, 1.0]) @ truth.intrinsics
    folder = write_capture(tmp_path / "roomplan", truth, turns=0)
    path = folder / "frames" / "frame_00001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intrinsics": larger.ravel().tolist()}))
    skips = Skips()
    open_roomplan(find_roomplan(tmp_path / "roomplan")["living-room"], skips)
    assert skips.counts == {"camera unreadable": 1}
    assert "frame_00001.json, intrinsics: the camera's centre" in skips.examples["camera unreadable"][0]
    write_planes(tmp_path / "planes", truth, intrinsics=larger.tolist())
    with pytest.raises(SourceError, match=r"lies outside the photograph of \d+x\d+ pixels; give the intrinsics"):
        open_planes(find_planes(tmp_path / "planes")["47000000"], Skips(True), (0, -1, 0))


def test_a_huge_photograph_is_refused(tmp_path: Path, truth: Truth) -> None:
    folder = write_capture(tmp_path, truth, depth=False)
    Image.new("1", (9000, 9000)).save(folder / "frames" / "frame_00000.png")
    (folder / "frames" / "frame_00000.png").rename(folder / "frames" / "frame_00000.jpg")
    skips = Skips()
    assert len(open_roomplan(find_roomplan(tmp_path)["living-room"], skips).frames) == len(truth) - 1
    assert skips.counts == {"camera unreadable": 1}
