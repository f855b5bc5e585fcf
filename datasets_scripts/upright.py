"""Turning photographs upright, cameras alike: hand-held captures store them as the device was held."""

import numpy as np

from datasets_scripts.capture import Float

MIN_LEVEL = 0.3


def quarter_turns_upright(world_from_cam: Float) -> int | None:
    """Quarter turns clockwise that bring the image's top nearest to up; None where the camera looks almost straight
    up or down, so that no side of the image is up.
    """
    right, down = world_from_cam[2, 0], world_from_cam[2, 1]  # how far the image axes point upwards
    if np.hypot(right, down) < MIN_LEVEL:
        return None
    # A turn clockwise brings what was left to the top.
    return int(np.argmax([-down, -right, down, right]))


def turn_camera(
    intrinsics: Float, world_from_cam: Float, size: tuple[int, int], quarter_turns: int
) -> tuple[Float, Float, tuple[int, int]]:
    """Intrinsics, world_from_cam and (width, height) of an image after quarter turns clockwise."""
    cam_from_turned = np.eye(4)  # a clockwise turn: u' = height - v, v' = u
    cam_from_turned[:2, :2] = [[0.0, 1.0], [-1.0, 0.0]]
    for _ in range(quarter_turns % 4):
        focal_x, focal_y, center_x, center_y = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
        intrinsics = np.array([[focal_y, 0.0, size[1] - center_y], [0.0, focal_x, center_x], [0.0, 0.0, 1.0]])
        world_from_cam = world_from_cam @ cam_from_turned
        size = (size[1], size[0])
    return intrinsics, world_from_cam, size
