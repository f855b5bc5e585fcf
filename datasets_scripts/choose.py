"""Which frames of a capture are kept: takes the looks that views.py judges by, and leaves unreadable frames out."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets_scripts import views
from datasets_scripts.capture import (
    Capture,
    FrameError,
    Row,
    SourceError,
    decode_image,
    read_view,
    scene_row,
    scene_seed,
)
from processing.geometry_vggt_qwen3 import resize_intrinsics

LOOK_SIDE = 160
MILLIMETRES = 1000.0


@dataclass(frozen=True)
class ViewOptions:
    """How many views of a scene are kept, chosen how, and how large.

    `candidates`: at most so many frames, evenly spread over the capture, are looked at. `image_side`, `depth_side`:
    longest side in pixels of what is stored, 0 = as it is.
    """

    num_views: int = 32
    select: str = "coverage"
    candidates: int = 160
    image_side: int = 640
    depth_side: int = 320
    seed: int = 0


def chosen_row(capture: Capture, options: ViewOptions) -> tuple[Row, str]:
    """The scene's row with its chosen frames, best first, and the sha256 of what was read of them.

    Frames that turn out unreadable are counted and others take their place.

    Raises:
        SourceError: no frame left (or, when strict, the first unreadable one).
    """
    looks = _Looks(capture)
    if options.select == "coverage" and not capture.has_cameras and len(capture.frames) > 1:
        capture.skips.skip("scene without cameras: views spread evenly instead", capture.scene_id)
    while True:
        try:
            chosen = _choose(looks, options)
            return scene_row(capture, chosen, image_side=options.image_side, depth_side=options.depth_side)
        except FrameError as error:
            capture.skips.fault("frame unreadable", error)
            looks.drop(error.index)
            if not looks.usable:
                raise SourceError(f"{capture.source} {capture.scene_id}: no frame can be read") from error


def _choose(looks: "_Looks", options: ViewOptions) -> list[int]:
    """Indices of frames, best first."""
    usable = looks.usable
    if options.select == "first":
        return [usable[i] for i in views.first(len(usable), options.num_views)]
    seed = scene_seed(looks.capture.scene_id, options.seed) if options.seed else None
    if options.select == "uniform" or not looks.capture.has_cameras:
        return [usable[i] for i in views.uniform(len(usable), options.num_views, seed)]
    candidates = [usable[i] for i in sorted(views.uniform(len(usable), options.candidates, seed))]
    seen, sharp = zip(*(looks.at(index) for index in candidates))
    cameras = np.stack([looks.capture.frames[index].world_from_cam for index in candidates])
    order = views.coverage(seen, options.num_views, world_from_cam=cameras, sharpness=sharp)
    return [candidates[i] for i in order]


class _Looks:
    """Small looks at the frames of a capture, each taken once."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.usable = list(range(len(capture.frames)))
        self._taken: dict[int, tuple[views.Voxels, float]] = {}

    def drop(self, index: int) -> None:
        self.usable.remove(index)

    def at(self, index: int) -> tuple[views.Voxels, float]:
        """What a frame sees (surfaces where it has depth, else its frustum) and how sharp it is at 160 pixels.

        Raises FrameError.
        """
        if index not in self._taken:
            try:
                self._taken[index] = self._look(index)
            except SourceError as error:
                raise FrameError(index, str(error)) from error
        return self._taken[index]

    def _look(self, index: int) -> tuple[views.Voxels, float]:
        frame = self.capture.frames[index]
        photograph, depth = read_view(self.capture, index)
        image = decode_image(photograph, self.capture.place(index), least_side=LOOK_SIDE)
        image.thumbnail((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX)
        sharpness = views.sharpness(np.asarray(image.convert("L")))
        if depth is None:
            return views.frustum_voxels(frame.intrinsics, frame.size, frame.world_from_cam), sharpness
        scale_x, scale_y = depth.shape[1] / frame.size[0], depth.shape[0] / frame.size[1]
        intrinsics = resize_intrinsics(frame.intrinsics, scale_x, scale_y)
        return views.depth_voxels(depth / MILLIMETRES, intrinsics, frame.world_from_cam), sharpness
