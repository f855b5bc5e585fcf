"""Upright oriented boxes: intersection over union by footprint polygons (shapely) and heights, and matching of sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

MIN_THICKNESS_M = 0.10


@dataclass(frozen=True)
class Boxes:
    """Upright boxes: `centers` [N, 3], `sizes` [N, 3] (width, depth along normal, height), unit `normals` [N, 2]."""

    centers: NDArray[np.float64]
    sizes: NDArray[np.float64]
    normals: NDArray[np.float64]

    @classmethod
    def from_anchors(cls, anchors: Sequence[Mapping[str, Any]]) -> Self:
        """From valid anchors; their normals are made unit length."""
        normals = np.array([anchor["normal"][:2] for anchor in anchors], dtype=np.float64).reshape(-1, 2)
        return cls(
            np.array([anchor["center"] for anchor in anchors], dtype=np.float64).reshape(-1, 3),
            np.array([anchor["extent"] for anchor in anchors], dtype=np.float64).reshape(-1, 3),
            normals / np.linalg.norm(normals, axis=1, keepdims=True),
        )

    def __len__(self) -> int:
        return len(self.centers)

    def __getitem__(self, index: Any) -> Self:
        return type(self)(self.centers[index], self.sizes[index], self.normals[index])

    def with_normals(self, mask: NDArray[np.bool_], others: "Boxes") -> Self:
        """Boxes turned to the normals of others where the mask [N] is set (a round thing has no direction)."""
        return type(self)(self.centers, self.sizes, np.where(mask[:, None], others.normals, self.normals))

    def scaled(self, factors: NDArray[np.float64], origins: NDArray[np.float64]) -> Self:
        """Boxes blown up by `factors` [N] about `origins` [N, 3]."""
        factors = factors[:, None]
        return type(self)(origins + factors * (self.centers - origins), factors * self.sizes, self.normals)

    def footprints(self) -> NDArray[Any]:
        """Their polygons seen from above, [N]."""
        across = np.stack([-self.normals[:, 1], self.normals[:, 0]], axis=1)
        halves = self.sizes[:, :2, None] / 2.0 * np.stack([across, self.normals], axis=1)  # [N, width | depth, xy]
        signs = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        return shapely.polygons(self.centers[:, None, :2] + signs @ halves)


def oriented_iou(first: Boxes, second: Boxes, min_thickness_m: float = MIN_THICKNESS_M) -> NDArray[np.float64]:
    """Intersection over union of N pairs of boxes, [N].

    Every size below `min_thickness_m` is raised to it on both sides, about the same centre: a wall, a door or a picture
    has no volume otherwise. At 0.10 m a plane that is 0.05 m off along its normal still has an IoU of 1/3.
    """
    first, second = (
        Boxes(boxes.centers, np.maximum(boxes.sizes, min_thickness_m), boxes.normals) for boxes in (first, second)
    )
    area = shapely.area(shapely.intersection(first.footprints(), second.footprints()))
    top = np.minimum(*(boxes.centers[:, 2] + boxes.sizes[:, 2] / 2.0 for boxes in (first, second)))
    bottom = np.maximum(*(boxes.centers[:, 2] - boxes.sizes[:, 2] / 2.0 for boxes in (first, second)))
    common = area * np.maximum(0.0, top - bottom)
    return common / (first.sizes.prod(axis=1) + second.sizes.prod(axis=1) - common)


def iou_table(predicted: Boxes, wanted: Boxes, is_round: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of every predicted box with every wanted one, [predicted, wanted]; `is_round` [wanted]."""
    rows, columns = np.indices((len(predicted), len(wanted))).reshape(2, -1)
    left, right = predicted[rows], wanted[columns]
    return oriented_iou(left.with_normals(is_round[columns], right), right).reshape(len(predicted), len(wanted))


def best_pairs(gain: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """One-to-one pairs (row, column) of the greatest total gain (Hungarian method)."""
    return linear_sum_assignment(gain, maximize=True)


def best_scale(predicted: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """The factor about the origin that brings predicted centres [N, 3] closest to wanted ones [M, 3].

    Every pair of centres proposes its own best factor, each factor a pairing (least total distance) and each pairing
    its least-squares factor; of these the one of the least total distance is taken. 1 where no positive factor helps.
    """
    products = predicted @ wanted.T
    lengths = np.broadcast_to((predicted**2).sum(axis=1, keepdims=True), products.shape)
    is_ahead = (products > 0) & (lengths > 0)
    proposed = {1.0, *(products[is_ahead] / lengths[is_ahead]).tolist()}
    pairings = [best_pairs(-_distances(scale * predicted, wanted)) for scale in proposed]
    factors = [_least_squares_scale(predicted[rows], wanted[columns]) for rows, columns in pairings]
    costs = [
        np.linalg.norm(factor * predicted[rows] - wanted[columns], axis=1).sum()
        for factor, (rows, columns) in zip(factors, pairings)
    ]
    return factors[int(np.argmin(costs))]


def _least_squares_scale(predicted: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    length = float((predicted**2).sum())
    product = float((predicted * wanted).sum())
    return product / length if length > 0 and product > 0 else 1.0


def _distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(first[:, None] - second[None], axis=-1)
