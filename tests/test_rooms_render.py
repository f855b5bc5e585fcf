"""The renderer against cases worked out by hand and against triangle meshes; its outputs against one another."""

import dataclasses

import numpy as np
import pytest
import torch

from datasets_scripts.rooms.catalogue import CLASSES, make
from datasets_scripts.rooms.export import primitive_mesh
from datasets_scripts.rooms.parts import Parts
from datasets_scripts.rooms.render import count_pixels, instance_table, render_batch
from datasets_scripts.rooms.room import generate_room
from datasets_scripts.rooms.scene import SceneObject, room_from_cam

ROOMS = [generate_room(5, "train", index, num_views=4) for index in range(3)]
SIZE = 56


@pytest.fixture(scope="module")
def rendered():
    return render_batch(ROOMS, size=SIZE)


def room_with(add, camera):
    """A room of 8 x 8 metres holding one thing built by `add(parts)` and one camera."""
    parts = Parts(np.random.default_rng(0))
    add(parts)
    primitives, size = parts.build()
    item = SceneObject("box", "object", None, primitives, size, origin=np.array([0.0, 2.0, 0.5]))
    return dataclasses.replace(ROOMS[0], objects=[item], room_from_cam=camera[None], focal=0.5)


def camera_at(position, yaw=0.0, pitch=0.0):
    return room_from_cam(np.array(position, dtype=float), yaw, pitch)


def middle(image):
    return float(image[0, 0, SIZE // 2, SIZE // 2])


def test_depth_of_a_box_is_z_depth():
    room = room_with(lambda p: p.box((-1, -0.5, 0), (1, 0.5, 1), (1, 0, 0)), camera_at((0, 0, 1)))
    out = render_batch([room], size=SIZE)
    hit = out["instances"][0, 0] == 1
    # the face lies across the optical axis at y = 1.5: one z-depth for all of it, whatever the angle of the ray
    assert torch.allclose(out["depth"][0, 0][hit], torch.tensor(1.5), atol=1e-5)
    columns = hit.any(0).nonzero()[:, 0]  # 2 m wide at 1.5 m, focal length half an image: 2/3 of the width
    assert len(columns) == pytest.approx(SIZE * 2 / 3, abs=1)
    rows = hit.any(1).nonzero()[:, 0]
    assert len(rows) == pytest.approx(SIZE / 3, abs=1)


def test_depth_of_a_cylinder_and_a_ball():
    upright = room_with(lambda p: p.cylinder((0, 0, 0.5), 0.5, 1.0, (1, 0, 0)), camera_at((0, 0, 1)))
    ball = room_with(lambda p: p.ellipsoid((0, 0, 0.5), (0.5, 0.25, 0.5), (1, 0, 0)), camera_at((0, 0, 1)))
    # rays half a pixel off the axis meet the round surfaces within a millimetre of their nearest point
    assert middle(render_batch([upright], size=SIZE)["depth"]) == pytest.approx(1.5, abs=2e-3)
    assert middle(render_batch([ball], size=SIZE)["depth"]) == pytest.approx(1.75, abs=2e-3)
    lying = room_with(lambda p: p.cylinder((0, 0, 0.5), 0.5, 2.0, (1, 0, 0), axis="x"), camera_at((0, 0, 1)))
    hit = render_batch([lying], size=SIZE)["instances"][0, 0] == 1
    assert hit[SIZE // 2].sum() == pytest.approx(SIZE * 2 / 3, abs=2)


def test_camera_axes():
    """x right, y down, z forward; +y of the room lies ahead at yaw 0, to the right at yaw 90 degrees."""
    to_the_left = room_with(lambda p: p.box((-1.5, 0, 0), (-0.5, 0.5, 1), (1, 0, 0)), camera_at((0.7, 0, 1)))
    columns = (render_batch([to_the_left], size=SIZE)["instances"][0, 0] == 1).nonzero()[:, 1]
    assert len(columns) and (columns < SIZE // 2).all()
    turned = room_with(lambda p: p.box((-1, 0, 0), (1, 0.5, 1), (1, 0, 0)), camera_at((0, 0.5, 1), yaw=0.9))
    columns = (render_batch([turned], size=SIZE)["instances"][0, 0] == 1).nonzero()[:, 1]
    assert len(columns) and columns.float().mean() > SIZE // 2
    raised = room_with(lambda p: p.box((-1, 0, 0), (1, 0.5, 1), (1, 0, 0)), camera_at((0, 0, 1), pitch=0.5))
    rows = (render_batch([raised], size=SIZE)["instances"][0, 0] == 1).nonzero()[:, 0]
    assert len(rows) and rows.float().mean() > SIZE // 2


def mesh_depth(triangles, origin, rays):
    """Nearest z-depth [K] of rays [K, 3] (camera z = 1) with triangles [T, 3, 3], by Moeller and Trumbore (1997)."""
    a, first, second = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    across = np.cross(rays[:, None], second[None])
    determinant = (across * first).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = origin - a
        u = (offset * across).sum(-1) / determinant
        sideways = np.cross(offset, first)
        v = (rays[:, None] * sideways).sum(-1) / determinant
        depth = (second * sideways).sum(-1) / determinant
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0.05)
    return np.where(hit, depth, np.inf).min(1)


def test_agrees_with_triangle_meshes(rendered):
    """Random pixels of every view, against a mesh of each primitive; round shapes have 48 sides there."""
    rng = np.random.default_rng(0)
    errors = []
    for index, room in enumerate(ROOMS):
        primitives, _ = room.primitives()
        triangles = np.concatenate([primitive_mesh(primitives, i, 48).triangles for i in range(len(primitives))])
        for view, camera in enumerate(room.room_from_cam):
            y, x = rng.integers(0, SIZE, (2, 24))
            local = np.stack([(x + 0.5) / SIZE - 0.5, (y + 0.5) / SIZE - 0.5, np.full(24, room.focal)]) / room.focal
            expected = mesh_depth(triangles, camera[:3, 3], (camera[:3, :3] @ local).T)
            errors.append(np.abs(rendered["depth"][index, view, y, x].numpy() - expected))
    errors = np.concatenate(errors)
    assert np.quantile(errors, 0.9) < 1e-3
    assert (errors < 0.02).mean() > 0.98  # the rest grazes the edge of a round shape


def world_points(rendered, room, view):
    """World points [H * W, 3] of a view from its depth, intrinsics and pose alone."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    rays = np.linalg.inv(rendered["intrinsics"][room].numpy()) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    local = rays * rendered["depth"][room, view].numpy().reshape(-1)
    pose = rendered["world_from_cam"][room, view].numpy()
    return (pose[:3, :3] @ local).T + pose[:3, 3]


def test_pixels_lie_in_the_box_of_their_instance(rendered):
    table = instance_table(ROOMS)
    for room in range(len(ROOMS)):
        for view in range(4):
            points = world_points(rendered, room, view)
            ids = rendered["instances"][room, view].numpy().reshape(-1)
            boxed = table["is_box"][room].numpy()[ids]
            assert boxed.mean() > 0.3
            center, size, axes = (table[key][room].numpy()[ids] for key in ("center", "size", "axes"))
            local = np.einsum("nij,nj->ni", axes, points - center)
            outside = np.abs(local) - size / 2
            is_wall = np.array([label == "wall" for label in ROOMS[room].instance_labels])[ids]
            # skirting boards stand out of the plane of their wall
            assert (outside[boxed & ~is_wall] < 2e-3).all()
            assert (outside[boxed & is_wall] < 0.02).all()


def test_two_views_agree(rendered):
    agreeing, compared = 0, 0
    for room in range(len(ROOMS)):
        points = world_points(rendered, room, 0)
        ids = rendered["instances"][room, 0].numpy().reshape(-1)
        for view in (1, 2, 3):
            pose = rendered["world_from_cam"][room, view].numpy()
            local = (points - pose[:3, 3]) @ pose[:3, :3]
            pixels = local @ rendered["intrinsics"][room].numpy().T
            with np.errstate(divide="ignore", invalid="ignore"):
                x, y = np.floor(pixels[:, :2] / pixels[:, 2:]).T
            inside = (local[:, 2] > 0.1) & (x >= 0) & (y >= 0) & (x < SIZE) & (y < SIZE)
            x, y = x[inside].astype(int), y[inside].astype(int)
            same_depth = np.abs(rendered["depth"][room, view, y, x].numpy() - local[inside, 2]) < 0.05
            same_id = rendered["instances"][room, view, y, x].numpy() == ids[inside]
            agreeing, compared = agreeing + int((same_depth & same_id).sum()), compared + int(same_depth.sum())
    assert compared > 1500
    assert agreeing / compared > 0.97


def test_every_pixel_sees_something(rendered):
    assert (rendered["instances"] > 0).all()
    assert (rendered["depth"] > 0.05).all() and (rendered["depth"] < 12).all()
    images = rendered["images"].float()
    assert images.shape == (3, 4, 3, SIZE, SIZE) and rendered["images"].dtype == torch.uint8
    assert (images.mean(dim=(2, 3, 4)) > 60).all() and (images.mean(dim=(2, 3, 4)) < 220).all()
    assert (images.std(dim=(2, 3, 4)) > 8).all()


def test_a_room_does_not_depend_on_its_batch(rendered):
    alone = render_batch([ROOMS[1]], size=SIZE)
    assert torch.equal(alone["instances"][0], rendered["instances"][1])
    assert torch.equal(alone["depth"][0], rendered["depth"][1])
    assert (alone["images"][0].int() - rendered["images"][1].int()).abs().max() <= 1


def test_colour_of_a_thing_is_the_colour_it_is_named_by():
    rng = np.random.default_rng(2)
    channel = {"red": 0, "green": 1, "blue": 2}
    camera = room_from_cam(np.array([0.0, 0.0, 1.2]), 0.0, -0.3)
    for name, index in channel.items():
        item = make("sofa", rng, color=name)
        item.origin, item.yaw = np.array([0.0, 2.2, 0.0]), np.pi
        room = dataclasses.replace(ROOMS[0], objects=[item], room_from_cam=camera[None])
        out = render_batch([room], size=SIZE)
        color = out["images"][0, 0].float()[:, out["instances"][0, 0] == 1].mean(1)
        assert color.argmax() == index and color[index] > 1.5 * color.sort().values[0]


def test_pixel_counts_and_labels(rendered):
    counts = count_pixels(ROOMS, rendered["instances"])
    table = instance_table(ROOMS)
    for index, room in enumerate(ROOMS):
        assert counts[index].shape == (4, len(room.instance_labels))
        assert (counts[index].sum(1) == SIZE**2).all()
        assert counts[index][2, 1] == (rendered["instances"][index, 2] == 1).sum()
        labels = [CLASSES[i] for i in table["label"][index, 1 : len(room.instance_labels)]]
        assert labels == room.instance_labels[1:]


def test_batches_need_equal_numbers_of_views():
    with pytest.raises(ValueError, match=r"same number of views, found \[4, 5\]"):
        render_batch([ROOMS[0], generate_room(5, "train", 9, num_views=5)])
