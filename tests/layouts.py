"""Writers of the layouts that real datasets come in, from scenes whose truth is known."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_scripts.rooms.render import render_batch
from datasets_scripts.rooms.room import generate_room

TICK_S = 0.1


@dataclass(frozen=True)
class Truth:
    """A scene: images uint8 [V, H, W, 3], depth [V, H, W] metres, intrinsics [3, 3], cameras [V, 4, 4], targets."""

    images: np.ndarray
    depth_m: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    targets: list[dict]

    def __len__(self) -> int:
        return len(self.images)

    def only(self, count: int) -> Truth:
        return replace(
            self,
            images=self.images[:count],
            depth_m=self.depth_m[:count],
            world_from_cam=self.world_from_cam[:count],
        )

    def cropped(self, left: int, top: int) -> Truth:
        """Without the first columns and rows: the principal point leaves the middle."""
        intrinsics = self.intrinsics.copy()
        intrinsics[:2, 2] -= (left, top)
        images, depth_m = self.images[:, top:, left:], self.depth_m[:, top:, left:]
        return replace(self, images=images, depth_m=depth_m, intrinsics=intrinsics)

    def points(self, view: int) -> np.ndarray:
        """World points [H, W, 3] of every pixel of a view."""
        return back_project(self.depth_m[view], self.intrinsics, self.world_from_cam[view])


def room_truth(index: int = 0, num_views: int = 12, size: int = 112) -> Truth:
    """A procedural room."""
    room = generate_room(0, "train", index, num_views)
    views = {key: value[0].numpy() for key, value in render_batch([room], size=size, antialias=False).items()}
    targets = [room.object_target(item) for item in room.objects] + [room.wall_target(wall) for wall in room.walls]
    return Truth(
        np.ascontiguousarray(views["images"].transpose(0, 2, 3, 1)),
        views["depth"].astype(np.float64),
        views["intrinsics"],
        views["world_from_cam"],
        targets,
    )


def back_project(depth_m: np.ndarray, intrinsics: np.ndarray, world_from_cam: np.ndarray) -> np.ndarray:
    """World points [H, W, 3]; pixel centres at +0.5."""
    height, width = depth_m.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T
    return (rays * depth_m[..., None]) @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]


def turned(angle: float, offset: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = offset
    return matrix


AXIS_ALIGNMENT = turned(0.7, (1.5, -2.0, 0.25))


def millimetres(depth_m: np.ndarray) -> np.ndarray:
    return np.rint(depth_m * 1000).astype(np.uint16)


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(f"{value:.6f}" for value in row) for row in matrix) + "\n")


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


# -------------------------------------------------------------------------------------------------------------- ScanNet


def whole_pixels(intrinsics: np.ndarray, side: int = 4) -> np.ndarray:
    """ScanNet's form of intrinsics: pixel centres at whole numbers."""
    matrix = np.eye(side)
    matrix[:3, :3] = intrinsics
    matrix[:2, 2] -= 0.5
    return matrix


def write_scannet_meta(root: Path, scene_id: str, alignment: np.ndarray | None = AXIS_ALIGNMENT) -> None:
    """`scans/<scene>/<scene>.txt`, with the line of the axis alignment unless it is None."""
    line = "" if alignment is None else "axisAlignment = " + " ".join(f"{v:.6f}" for v in alignment.ravel()) + " \n"
    folder = root / "scans" / scene_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{scene_id}.txt").write_text(f"colorWidth = 112\n{line}sceneType = Bedroom / Hotel\n")


def scannet_poses(truth: Truth, alignment: np.ndarray = AXIS_ALIGNMENT) -> np.ndarray:
    return np.linalg.inv(alignment) @ truth.world_from_cam


def write_posed_images(root: Path, scene_id: str, truth: Truth, lost: tuple[int, ...] = ()) -> Path:
    """ScanNet's posed_images layout; the cameras of `lost` frames are written as -inf."""
    folder = root / "posed_images" / scene_id
    write_matrix(folder / "intrinsic.txt", whole_pixels(truth.intrinsics))
    for index, pose in enumerate(scannet_poses(truth)):
        write_image(folder / f"{index:05d}.jpg", truth.images[index])
        write_image(folder / f"{index:05d}.png", millimetres(truth.depth_m[index]))
        write_matrix(folder / f"{index:05d}.txt", np.full((4, 4), -np.inf) if index in lost else pose)
    write_scannet_meta(root, scene_id)
    return folder


def write_sensreader(root: Path, scene_id: str, truth: Truth) -> Path:
    """The folders that ScanNet's SensReader exports."""
    folder = root / "scans" / scene_id
    for camera in ("color", "depth"):
        write_matrix(folder / "intrinsic" / f"intrinsic_{camera}.txt", whole_pixels(truth.intrinsics))
        write_matrix(folder / "intrinsic" / f"extrinsic_{camera}.txt", np.eye(4))
    for index, pose in enumerate(scannet_poses(truth)):
        write_image(folder / "color" / f"{index}.jpg", truth.images[index])
        write_image(folder / "depth" / f"{index}.png", millimetres(truth.depth_m[index]))
        write_matrix(folder / "pose" / f"{index}.txt", pose)
    write_scannet_meta(root, scene_id)
    return folder


def write_sens(root: Path, scene_id: str, truth: Truth, lost: tuple[int, ...] = ()) -> Path:
    """A `.sens` file of version 4: JPEG colour, zlib depth."""
    write_scannet_meta(root, scene_id)
    path = root / "scans" / scene_id / f"{scene_id}.sens"
    height, width = truth.depth_m.shape[1:]
    name = b"StructureSensor"
    head = struct.pack("<IQ", 4, len(name)) + name
    for matrix in (whole_pixels(truth.intrinsics), np.eye(4), whole_pixels(truth.intrinsics), np.eye(4)):
        head += matrix.astype("<f4").tobytes()
    head += struct.pack("<2i4IfQ", 2, 1, width, height, width, height, 1000.0, len(truth))
    with path.open("wb") as file:
        file.write(head)
        for index, pose in enumerate(scannet_poses(truth)):
            if index in lost:
                pose = np.full((4, 4), -np.inf)
            temporary = path.with_suffix(".jpg")
            write_image(temporary, truth.images[index])
            color = temporary.read_bytes()
            temporary.unlink()
            depth = zlib.compress(millimetres(truth.depth_m[index]).tobytes())
            file.write(struct.pack("<16f4Q", *pose.ravel(), index, index, len(color), len(depth)) + color + depth)
    return path


def write_mesh(root: Path, scene_id: str, vertices: np.ndarray) -> Path:
    """`<scene>_vh_clean_2.ply` with coloured vertices and one face."""
    path = root / "scans" / scene_id / f"{scene_id}_vh_clean_2.ply"
    names = ["float x", "float y", "float z", "uchar red", "uchar green", "uchar blue", "uchar alpha"]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    head += [f"property {name}" for name in names]
    head += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    stored = np.zeros(len(vertices), dtype=[("p", "<f4", 3), ("c", "u1", 4)])
    stored["p"] = vertices
    face = struct.pack("<B3i", 3, 0, 1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(head) + "\n").encode() + stored.tobytes() + face)
    return path


# ---------------------------------------------------------------------------------------------------------- ARKitScenes


def write_arkitscenes(
    root: Path, video: str, truth: Truth, *, layout: str = "raw", fold: str = "Training", turns: tuple[int, ...] = (0,)
) -> Path:
    """A video of the raw or 3dod layout. Frame i is stored so that `turns[i % len(turns)]` clockwise turns right it.

    Frames are 0.1 s apart; the trajectory has the same times, but the intrinsics' names are a millisecond off.
    """
    folder = root / layout / fold / video
    frames = folder / f"{video}_frames" if layout == "3dod" else folder
    lines = []
    for index in range(len(truth)):
        turn = turns[index % len(turns)]
        seconds = 1000 + TICK_S * index
        camera, intrinsics = _as_held(truth, index, turn)
        stored, depth = (np.rot90(a[index], turn) for a in (truth.images, millimetres(truth.depth_m)))
        write_image(frames / "lowres_wide" / f"{video}_{seconds:.3f}.png", np.ascontiguousarray(stored))
        write_image(frames / "lowres_depth" / f"{video}_{seconds:.3f}.png", np.ascontiguousarray(depth))
        if layout == "raw":
            confidence = np.full(depth.shape, 2, np.uint8)
            write_image(frames / "confidence" / f"{video}_{seconds:.3f}.png", confidence)
        pincam = frames / "lowres_wide_intrinsics" / f"{video}_{seconds + 0.001:.3f}.pincam"
        pincam.parent.mkdir(exist_ok=True)
        height, width = depth.shape
        pincam.write_text(" ".join(f"{v:.9g}" for v in (width, height, *intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]])))
        cam_from_world = np.linalg.inv(camera)
        values = [seconds, *axis_angle(cam_from_world[:3, :3]), *cam_from_world[:3, 3]]
        lines.append(" ".join(f"{value:.9f}" for value in values))
    (frames / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    write_annotation(folder / f"{video}_3dod_annotation.json", truth.targets)
    return folder


def write_annotation(path: Path, targets: list[dict]) -> None:
    """A 3dod annotation; the `obb` beside each `obbAligned` is in centimetres, as in the real files."""
    data = []
    for index, target in enumerate(targets):
        if target["kind"] == "plane":
            continue
        box = {
            "centroid": target["center"],
            "axesLengths": target["size"],
            "normalizedAxes": np.ravel(target["axes"]).tolist(),
        }
        centimetres = box | {key: [100 * v for v in box[key]] for key in ("centroid", "axesLengths")}
        label = target["label"].replace(" ", "_")
        data.append({"uid": f"{index}", "label": label, "segments": {"obb": centimetres, "obbAligned": box}})
    path.write_text(json.dumps({"data": data, "skipped": False}))


def axis_angle(rotation: np.ndarray) -> np.ndarray:
    """The rotation vector [3] of a matrix, by its eigenvector."""
    values, vectors = np.linalg.eig(rotation)
    axis = np.real(vectors[:, np.argmin(abs(values - 1))])
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return axis * (angle if np.allclose(turn, rotation, atol=1e-6) else -angle)


def _as_held(truth: Truth, index: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera and intrinsics of the stored image, whose content is the upright one turned counter-clockwise."""
    height, width = truth.depth_m.shape[1:]
    angle = -np.pi / 2 * turn
    stored_from_upright = np.eye(3)
    stored_from_upright[:2, :2] = np.round([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    camera = truth.world_from_cam[index].copy()
    camera[:3, :3] = camera[:3, :3] @ stored_from_upright.T
    middle = np.array([width / 2, height / 2])
    offset = truth.intrinsics[:2, 2] - middle
    center = stored_from_upright[:2, :2] @ offset
    focal = np.abs(stored_from_upright[:2, :2] @ truth.intrinsics[[0, 1], [0, 1]])
    new_middle = middle[::-1] if turn % 2 else middle
    intrinsics = np.array(
        [[focal[0], 0, new_middle[0] + center[0]], [0, focal[1], new_middle[1] + center[1]], [0, 0, 1]]
    )
    return camera, intrinsics


# ------------------------------------------------------------------------------------------------------------ questions


def write_scanqa(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def scanqa_record(question_id: str, scene_id: str, question: str, answers: list[str] | None) -> dict:
    record = {"question": question, "question_id": question_id, "scene_id": scene_id}
    return record if answers is None else record | {"answers": answers, "object_ids": [1], "object_names": ["thing"]}


def write_sqa3d(folder: Path, split: str, records: list[dict]) -> Path:
    """records: {id, scene, situation, others, question, answer, position, yaw}; returns the question file."""
    folder.mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for record in records:
        shared = {"question_id": record["id"], "scene_id": record["scene"]}
        questions.append(
            shared
            | {
                "situation": record["situation"],
                "alternative_situation": record.get("others", []),
                "question": record["question"],
            }
        )
        half = record.get("yaw", 0.0) / 2
        annotations.append(
            shared
            | {
                "question_type": "N/A",
                "answer_type": "other",
                "answers": [{"answer": record["answer"], "answer_confidence": "yes", "answer_id": 1}],
                "rotation": {"_x": 0, "_y": 0, "_z": float(np.sin(half)), "_w": float(np.cos(half))},
                "position": dict(zip("xyz", record.get("position", (0.0, 0.0, 0)))),
            }
        )
    path = folder / f"v1_balanced_questions_{split}_scannetv2.json"
    path.write_text(json.dumps({"questions": questions}))
    annotated = folder / f"v1_balanced_sqa_annotations_{split}_scannetv2.json"
    annotated.write_text(json.dumps({"annotations": annotations}))
    return path
