"""Figures of the literature, to stand beside ours: each as its authors report it, by their own evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One system. `source`: the paper; scores in percent, CIDEr times 100."""

    system: str
    source: str
    scores: dict[str, float]


_SPATIAL_MLLM = ("Spatial-MLLM-4B (VGGT)", "Wu et al. 2025, arXiv:2505.23747")
_VG_LLM = ("VG-LLM-4B (VGGT)", "Zheng et al. 2025, arXiv:2505.24625")
_VLM_3R = ("VLM-3R-7B", "Fan et al. 2025, arXiv:2505.20279")
_VIDEO_3D = ("Video-3D-LLM-7B", "Zheng et al. 2024, arXiv:2412.00493")
_LLAVA_3D = ("LLaVA-3D-7B", "Zhu et al. 2024, arXiv:2409.18125")
_ROSS3D = ("Ross3D-7B", "Wang et al. 2025, arXiv:2504.01901")

PUBLISHED: dict[tuple[str, str], tuple[Published, ...]] = {
    ("scanqa", "val"): (
        Published(*_SPATIAL_MLLM, {"CIDEr": 91.8}),
        Published(*_VLM_3R, {"CIDEr": 101.9}),
        Published(*_VIDEO_3D, {"CIDEr": 102.1, "EM@1": 30.1}),
        Published(*_LLAVA_3D, {"CIDEr": 103.1, "EM@1": 30.6}),
        Published(*_ROSS3D, {"CIDEr": 107.0, "EM@1": 30.8}),
    ),
    ("sqa3d", "test"): (
        Published(*_SPATIAL_MLLM, {"EM@1": 55.9}),
        Published(*_VG_LLM, {"EM@1": 57.0}),
        Published(*_VIDEO_3D, {"EM@1": 58.6}),
        Published(*_LLAVA_3D, {"EM@1": 60.1}),
        Published(*_VLM_3R, {"EM@1": 60.7}),
        Published(*_ROSS3D, {"EM@1": 63.0}),
    ),
}
CAVEAT = (
    "as their authors report them, each by its own prompt and evaluation code; only scores of one protocol can be "
    "compared, and a larger language model or other training data explain a difference as well as a better method"
)


def published(task: str, split: str) -> tuple[Published, ...]:
    """The figures for a task and split; none for tasks of our own."""
    return PUBLISHED.get((task, split), ())
