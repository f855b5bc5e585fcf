"""Rooms are plausible: nothing overlaps, everything is inside, cameras stand free and see the room."""

import dataclasses

import numpy as np
import pytest
import shapely

from datasets_scripts.rooms.catalogue import CATALOGUE, FURNITURE, make
from datasets_scripts.rooms.export import export_glb, instance_meshes
from datasets_scripts.rooms.facts import is_standing
from datasets_scripts.rooms.room import generate_room
from datasets_scripts.schema import target_faults

ROOMS = [generate_room(3, "train", index) for index in range(30)]


def solid(item):
    """A thing's footprint and height range, shrunk by a millimetre."""
    return shapely.Polygon(item.footprint(-0.001)), item.origin[2] + 0.001, item.top - 0.001


def test_nothing_overlaps():
    for room in ROOMS:
        solids = [(item.label, *solid(item)) for item in room.objects if item.label != "rug"]
        for i, (label, area, low, high) in enumerate(solids):
            for other, other_area, other_low, other_high in solids[:i]:
                apart = low >= other_high or other_low >= high or not area.intersects(other_area)
                assert apart, f"{room.room_id}: {label} and {other}"


def test_everything_is_inside_the_room():
    for room in ROOMS:
        floor = shapely.Polygon(room.polygon).buffer(1e-6)
        for item in room.objects:
            assert floor.covers(shapely.Polygon(item.footprint())), f"{room.room_id}: {item.label}"
            assert item.origin[2] >= -1e-9 and item.top <= room.height


def test_things_stand_on_floor_support_or_wall():
    for room in ROOMS:
        for item in room.objects:
            if item.support is not None:
                support = room.objects[item.support]
                assert 0 <= item.origin[2] - support.top < 0.01
                assert shapely.Polygon(support.footprint()).covers(shapely.Point(item.origin[:2]))
            elif item.mounted:
                wall = room.walls[item.wall]
                back = item.origin[:2] - item.front * item.size[1] / 2
                assert abs((back - wall.start) @ wall.normal) < 0.01
                assert np.allclose(item.front, wall.normal)
            else:
                assert item.origin[2] == 0


def test_doors_stay_free():
    for room in ROOMS:
        for door in (item for item in room.objects if item.label == "door"):
            before = shapely.Point(door.origin[:2] + 0.45 * door.front).buffer(0.3)
            blocking = [item.label for item in room.objects if is_standing(item) and before.intersects(solid(item)[0])]
            assert not blocking, f"{room.room_id}: {blocking}"


def test_variety():
    labels = {item.label for room in ROOMS for item in room.objects}
    assert len(labels & set(FURNITURE)) >= 20
    assert any(len(room.polygon) == 6 for room in ROOMS) and any(len(room.polygon) == 4 for room in ROOMS)
    assert len({room.floor_material for room in ROOMS}) == 3
    assert all(len(make(label, np.random.default_rng(0)).parts) >= 2 for label in CATALOGUE)
    yaws = np.array([np.arctan2(*room.world_from_room[1::-1, 0]) for room in ROOMS])
    assert yaws.min() < -1.5 and yaws.max() > 1.5


def test_cameras_stand_free_at_eye_height():
    for room in ROOMS:
        floor = shapely.Polygon(room.polygon).buffer(-0.25)
        for position in room.room_from_cam[:, :3, 3]:
            here = shapely.Point(position[:2])
            assert floor.covers(here)
            assert 1.3 < position[2] < 1.8
            assert not any(
                shapely.Polygon(item.footprint(0.2)).covers(here) for item in room.objects if is_standing(item)
            )


def test_cameras_cover_the_room():
    for room in ROOMS:
        seen = np.zeros(len(room.objects), dtype=bool)
        centers = np.array([item.center for item in room.objects])
        for pose in room.room_from_cam:
            local = (centers - pose[:3, 3]) @ pose[:3, :3]
            seen |= (local[:, 2] > 0) & (np.abs(local[:, :2]) * room.focal < 0.5 * local[:, 2:]).all(1)
        assert seen.mean() > 0.9, room.room_id


def test_targets_fit_the_schema_and_contain_the_thing():
    room = ROOMS[0]
    meshes = {name.split("_", 1)[0]: mesh for name, mesh in instance_meshes(room).items()}
    for index, item in enumerate(room.objects):
        target = room.object_target(item)
        assert target_faults(target) == []
        vertices = meshes[f"{index + 1:03d}"].vertices
        local = (vertices - target["center"]) @ np.array(target["axes"]).T
        reach = np.abs(local).max(0) * 2
        assert (reach <= np.array(target["size"]) + 1e-6).all(), item.label
        if item.kind != "round":  # the box is tight, up to the mesh's 32-sided circles
            assert (reach >= np.array(target["size"]) * 0.98 - 1e-3).all(), item.label


def test_wall_targets_face_the_room():
    for room in ROOMS[:5]:
        inside = room.world_from_room @ np.array(
            [*shapely.Polygon(room.polygon).representative_point().coords[0], 1, 1]
        )
        for wall in room.walls:
            target = room.wall_target(wall)
            assert target_faults(target) == [] and target["size"][1] == 0
            start = room.world_from_room @ np.array([*wall.start, 0, 1])
            along = (np.asarray(target["center"]) - start[:3]) @ np.array(target["axes"])[0]
            assert along == pytest.approx(wall.length / 2)
            if len(room.walls) == 4:
                assert (inside[:3] - target["center"]) @ np.array(target["axes"])[1] > 0


def test_same_arguments_same_room():
    again = generate_room(3, "train", 4)
    assert repr(dataclasses.asdict(again)) == repr(dataclasses.asdict(ROOMS[4]))
    assert not np.array_equal(generate_room(3, "heldout", 4).polygon, again.polygon)
    assert not np.array_equal(generate_room(4, "train", 4).polygon, again.polygon)


def test_number_of_views_changes_cameras_alone():
    more = generate_room(3, "train", 4, num_views=12)
    assert more.room_from_cam.shape == (12, 4, 4)
    assert repr([item for item in more.objects]) == repr(ROOMS[4].objects)


def test_glb_opens(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    export_glb(ROOMS[1], tmp_path / "room.glb")
    scene = trimesh.load(tmp_path / "room.glb")
    assert len(scene.geometry) == len(ROOMS[1].instance_labels) - 1
    height = scene.bounds[1, 1] - scene.bounds[0, 1]  # Y is up
    assert height == pytest.approx(ROOMS[1].height, abs=1e-3)
