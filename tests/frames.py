"""Cameras and moves of the world for tests."""

from __future__ import annotations

import numpy as np


def camera(eye, forward, up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """world_from_cam of a camera at `eye` that looks along `forward`, image up towards `up`."""
    z = np.asarray(forward, dtype=float) / np.linalg.norm(forward)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
    matrix[:3, 3] = eye
    return matrix


def turn_and_move(angle: float, offset) -> np.ndarray:
    """new_from_world: a turn about the vertical, then a shift."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = offset
    return matrix
