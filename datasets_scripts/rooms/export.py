"""A procedural room as a GLB file, one named mesh a thing, for viewers and for checking the renderer.

python -m datasets_scripts.rooms.export --index 3 --output room.glb
"""

import argparse
from pathlib import Path

import numpy as np
import trimesh

from datasets_scripts.rooms.room import SPLIT_CODES, generate_room
from datasets_scripts.rooms.scene import BOX, CYLINDER, ELLIPSOID, QUAD, Primitives, Room

_GLTF_FROM_WORLD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # glTF is Y-up
_QUAD_CORNERS = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], dtype=np.float64)


def instance_meshes(room: Room) -> dict[str, trimesh.Trimesh]:
    """Return one mesh an instance in the world frame, metres, by name "<instance id>_<label>", with vertex colours."""
    primitives, instance = room.primitives()
    meshes: dict[str, list[trimesh.Trimesh]] = {}
    for i, number in enumerate(instance):
        mesh = primitive_mesh(primitives, i)
        mesh.apply_transform(room.world_from_room)
        meshes.setdefault(f"{number:03d}_{room.instance_labels[number]}", []).append(mesh)
    return {name: trimesh.util.concatenate(parts) for name, parts in meshes.items()}


def primitive_mesh(primitives: Primitives, index: int, sections: int = 32) -> trimesh.Trimesh:
    """Return primitive number `index` as a mesh in the frame of `primitives`; round ones have `sections` sides."""
    shape = primitives.shape[index]
    if shape == BOX:
        mesh = trimesh.creation.box(extents=(2, 2, 2))
    elif shape == CYLINDER:
        mesh = trimesh.creation.cylinder(radius=1, height=2, sections=sections)
    elif shape == ELLIPSOID:
        mesh = trimesh.creation.uv_sphere(radius=1, count=(sections // 2, sections))
    elif shape == QUAD:
        mesh = trimesh.Trimesh(_QUAD_CORNERS, [(0, 1, 2), (0, 2, 3)])
    else:
        raise ValueError(f"primitive {index} has shape {shape}, wanted one of {BOX}, {CYLINDER}, {ELLIPSOID}, {QUAD}")
    matrix = np.eye(4)
    matrix[:3, :3] = primitives.rotation[index] * primitives.half[index]
    matrix[:3, 3] = primitives.center[index]
    mesh.apply_transform(matrix)
    color = np.append(primitives.color[index], 1.0) * 255
    mesh.visual.vertex_colors = np.tile(color.astype(np.uint8), (len(mesh.vertices), 1))
    return mesh


def export_glb(room: Room, path: str | Path) -> None:
    """Write a room to a GLB file, turned to glTF's Y-up axes."""
    scene = trimesh.Scene()
    for name, mesh in instance_meshes(room).items():
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    scene.apply_transform(_GLTF_FROM_WORLD)
    scene.export(str(path), file_type="glb")


def main(arguments: list[str] | None = None) -> None:
    """Write the room that the command line names."""
    parser = argparse.ArgumentParser(description="Write a procedural room as a GLB file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the dataset")
    parser.add_argument("--split", choices=sorted(SPLIT_CODES), default="train", help="split of the room")
    parser.add_argument("--index", type=int, default=0, help="number of the room in its split")
    parser.add_argument("--output", type=Path, default=Path("room.glb"), help="file to write")
    args = parser.parse_args(arguments)
    export_glb(generate_room(args.seed, args.split, args.index), args.output)


if __name__ == "__main__":
    main()
