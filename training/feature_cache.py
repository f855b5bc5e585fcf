"""Cached features: what the frozen encoder makes of drawn sets of views, read in place of the images.

    <cache>/features.json                      identity and counts, written last: a folder without it is incomplete
    <cache>/<split>/<scene>.<set>.safetensors  features of each layer, and what depth says of the same views

The identity holds everything that decides the features: encoder weights, layers, pooling, image processor, datasets,
views drawn, dropout of views. A cache whose identity is not the run's is refused with the names of what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from datasets_scripts.schema import read_manifest
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .arguments import DataArguments
from .data import Draw, SceneDataset, SceneExample, cameras_known

CACHE_NAME, PARTIAL_NAME = "features.json", "features.partial.json"
FORMAT = 1
FEATURE_DTYPES = ("bfloat16", "int8")
DEPTH_KEYS = ("depth_hist", "patch_points", "patch_points_mask")
EVALUATION_SET = "eval"
COMMAND = "python -m training.features with the settings of this run"


class StaleCacheError(ValueError):
    """The cache was written for another encoder, preprocessing, dataset or choice of views."""


@dataclass(frozen=True)
class CachedViews:
    """One view set.

    `features` layer -> bfloat16 [V, P, C], or int8 with `scales` float32 [V, 1, C]; `arrays` the keys of the batch
    table that depend on the views alone: intrinsics in pixels of the model's image, depth, padding.
    """

    frame_ids: list[str]
    features: dict[int, torch.Tensor]
    scales: dict[int, torch.Tensor]
    arrays: dict[str, torch.Tensor]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class ViewSet:
    """A set of views to encode: `number` counts those of a scene and anchor in training, None is that of evaluation."""

    scene: int
    anchor: str | None
    number: int | None

    def draw(self, seed: int) -> Draw:
        """How its views are drawn."""
        return Draw(self.scene, (), self.anchor, None if self.number is None else (seed, self.scene, self.number))

    def path(self, folder: str | Path, split: str) -> Path:
        """Its file."""
        anchor = "" if self.anchor is None else "." + quote(self.anchor, safe="")
        name = EVALUATION_SET if self.number is None else self.number
        return Path(folder) / split / f"{self.scene:06d}{anchor}.{name}.safetensors"


def wanted_sets(dataset: SceneDataset, view_sets: int) -> list[ViewSet]:
    """Every view set that training or evaluation on this dataset may ask for, scene by scene."""
    numbers = range(view_sets) if dataset.split == "train" else (None,)
    groups = sorted({(scene, anchor or "") for _, _, scene, _, anchor in dataset.samples})
    return [ViewSet(scene, anchor or None, number) for scene, anchor in groups for number in numbers]


class CachedSceneDataset(SceneDataset):
    """A `SceneDataset` whose examples hold cached features, and no image or depth map is decoded.

    Args:
        cache: folder that `training.features` wrote.
        Others as for `SceneDataset`.

    Raises:
        FileNotFoundError: for a folder that is no complete cache, or that lacks sets of views of this dataset.
    """

    def __init__(self, cache: str | Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache = Path(cache)
        self.manifest = read_cache_manifest(cache)
        self.view_sets = self.manifest["identity"]["view_sets"]
        self._encoded_scenes = [table.remove_columns(["images", "depth"]) for table in self._encoded_scenes]
        self._refuse_missing()

    def _refuse_missing(self) -> None:
        wanted = wanted_sets(self, self.view_sets)
        folder = self.cache / self.split
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing = [view_set for view_set in wanted if view_set.path(self.cache, self.split).name not in there]
        if missing:
            raise FileNotFoundError(
                f"{self.cache} lacks {len(missing)} of {len(wanted)} sets of views of the split {self.split}; run "
                f"{COMMAND}, which adds what is missing"
            )

    def refuse_stale(self, wanted: dict[str, Any]) -> None:
        """See `refuse_stale`."""
        refuse_stale(self.cache, self.manifest["identity"], wanted)

    def __getitem__(self, draw: Draw) -> SceneExample:
        scene = self._scene(draw.scene)
        number = None
        if draw.seed is not None:
            number = int(np.random.default_rng([*draw.seed, *b"view set"]).integers(self.view_sets))
        views = read_view_set(ViewSet(draw.scene, draw.anchor, number).path(self.cache, self.split))
        rows = [scene["frame_ids"].index(frame) for frame in views.frame_ids]
        known = cameras_known(scene)
        return SceneExample(
            scene_id=scene["scene_id"],
            source=scene["source"],
            frame_ids=views.frame_ids,
            images=[],
            intrinsics=views.arrays["intrinsics"].numpy() if known else None,
            world_from_cam=np.asarray(scene["world_from_cam"], np.float64)[rows] if known else None,
            depth=None,
            samples=[self.sample(index) for index in draw.samples],
            draw=draw,
            views=views,
        )


def read_cache_manifest(cache: str | Path) -> dict[str, Any]:
    """What `features.json` says.

    Raises:
        FileNotFoundError: where it is not there, so that the cache is incomplete or none.
    """
    path = Path(cache) / CACHE_NAME
    if not path.is_file():
        begun = (Path(cache) / PARTIAL_NAME).is_file()
        state = "is not finished" if begun else "is no feature cache"
        raise FileNotFoundError(f"{cache} {state}: it has no {CACHE_NAME}; run {COMMAND}")
    return json.loads(path.read_text(encoding="utf-8"))


def read_view_set(path: Path) -> CachedViews:
    """Maps a file of the cache into memory: nothing is read before it is used.

    Raises:
        ValueError: for a file that is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and run {COMMAND}") from error
    layers = {kind: {} for kind in ("features", "scales")}
    for name in [name for name in tensors if "." in name]:
        kind, layer = name.split(".")
        layers[kind][int(layer)] = tensors.pop(name)
    return CachedViews(
        frame_ids=json.loads(metadata["frame_ids"]),
        image_size=tuple(json.loads(metadata["image_size"])),
        arrays=tensors,
        **layers,
    )


def stack_views(views: Sequence[CachedViews]) -> dict[str, Any]:
    """Cached sets of S scenes -> `vision_features`, their scales, and `image_size`; padded to the largest V."""
    most = max(len(v.frame_ids) for v in views)
    batch: dict[str, Any] = {
        "vision_features": {layer: _stack([v.features[layer] for v in views], most) for layer in views[0].features},
        "image_size": list(views[0].image_size),
    }
    if views[0].scales:
        batch["vision_scales"] = {layer: _stack([v.scales[layer] for v in views], most) for layer in views[0].scales}
    return batch


def _stack(tensors: list[torch.Tensor], length: int) -> torch.Tensor:
    """[V, ...] each -> [S, length, ...], copied once: in a worker, straight into memory shared with the trainer."""
    shape = (len(tensors), length, *tensors[0].shape[1:])
    if torch.utils.data.get_worker_info() is None:
        out = torch.empty(shape, dtype=tensors[0].dtype)
    else:
        size = int(np.prod(shape)) * tensors[0].element_size()
        storage = tensors[0].untyped_storage()._new_shared(size, device="cpu")
        out = torch.empty(0, dtype=tensors[0].dtype).set_(storage, 0, shape)
    for row, tensor in zip(out, tensors):
        row[: len(tensor)] = tensor
        row[len(tensor) :] = 0
    return out


def restore_features(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as the model takes it: int8 features times their scales, in bfloat16."""
    if "vision_scales" not in batch:
        return batch
    batch = dict(batch)
    scales = batch.pop("vision_scales")
    batch["vision_features"] = {
        layer: (maps * scales[layer]).to(torch.bfloat16) for layer, maps in batch["vision_features"].items()
    }
    return batch


def quantize(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[V, P, C] -> int8 of the same shape, and its scale [V, 1, C]: a few channels are far larger than all others."""
    scale = features.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return (features.float() / scale).round().to(torch.int8), scale


# ------------------------------------------------------------------------------------------------------------- identity


def cache_identity(
    model: VggtQwen3ForConditionalGeneration, processor: VggtQwen3Processor, data_args: DataArguments
) -> dict[str, Any]:
    """Everything that decides the features, by names that an error can state."""
    perceiver = model.config.perceiver_config
    preprocessing = json.loads(processor.image_processor.to_json_string())
    return {
        "format": FORMAT,
        "encoder": hash_encoder(model.model.vision_model),
        "feature_layers": sorted(perceiver.feature_layers),
        "feature_pooling": perceiver.feature_pooling,
        **{f"preprocessing.{key}": value for key, value in preprocessing.items()},
        "dataset": [read_manifest(root).fingerprint for root in data_args.dataset],
        "num_views": data_args.num_views,
        "view_sets": data_args.view_sets,
        "view_dropout": data_args.view_dropout,
        "feature_dtype": data_args.feature_dtype,
    }


def refuse_stale(cache: str | Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares two identities.

    Raises:
        StaleCacheError: naming every entry that differs, as it is in the cache and in this run.
    """
    differ = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if differ:
        faults = "; ".join(f"{key} is {_short(found.get(key))} there, {_short(wanted.get(key))} here" for key in differ)
        raise StaleCacheError(f"{cache} is stale: {faults}. Write another with {COMMAND}, or change these back")


def hash_encoder(encoder: VggtModel) -> str:
    """Of configuration and weights; these rounded to bfloat16, so that the dtype they are held in does not matter."""
    pieces: list[bytes] = [json.dumps(encoder.config.to_diff_dict(), sort_keys=True, default=str).encode()]
    return hash_bytes(_pieces(pieces, sorted(encoder.state_dict().items())))


def _pieces(head: list[bytes], tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterable[bytes]:
    yield from head
    for name, tensor in tensors:
        yield f"{name} {tuple(tensor.shape)}".encode()
        yield tensor.detach().to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy().tobytes()


def hash_bytes(pieces: Iterable[bytes]) -> str:
    """First 16 digits of SHA-256."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:120]}…"
