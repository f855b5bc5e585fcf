"""Converts an official VGGT checkpoint into a folder that `from_pretrained` loads.

    python -m modeling_vggt_qwen3.convert_vggt_checkpoint --checkpoint model.pt --output checkpoints/vggt

Every tensor of the checkpoint is converted, or ignored by name (the track head and the ViT's mask token, which nothing
here reads), or the conversion stops. Tensors pass one by one from the mapped file to the new one.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from .configuration_vggt_qwen3 import VggtConfig
from .modeling_vggt_heads import VggtForReconstruction

HUB_FILES = ("model.safetensors", "model.pt", "vggt_1B_commercial.pt")
WRAPPERS = ("model", "state_dict")
IGNORED = {
    "track_head.*": r"track_head\..*",
    "aggregator.patch_embed.mask_token": r"aggregator\.patch_embed\.mask_token",
}
PATCH_PROJECTION = "aggregator.patch_embed.patch_embed.proj.weight"
NAMES_SHOWN = 8
LOCAL_SUFFIXES = (".pt", ".pth", ".safetensors")
OTHER_SIZE_HINT = "for other sizes than 1B pass --official-config"
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

RENAMINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^aggregator\.", "vggt."),
    (r"\.patch_embed\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.pos_embed$", ".position_embeddings"),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.attn\.", ".attention."),
    (r"\.ls1\.gamma$", ".attention_scale"),
    (r"\.ls2\.gamma$", ".mlp_scale"),
    (r"^camera_head\.trunk\.", "camera_head.blocks."),
    (r"^camera_head\.trunk_norm\.", "camera_head.norm."),
    (r"^camera_head\.embed_pose\.", "camera_head.pose_proj."),
    (r"^camera_head\.empty_pose_tokens$", "camera_head.empty_pose"),
    (r"^camera_head\.poseLN_modulation\.1\.", "camera_head.modulation."),
    (r"^camera_head\.pose_branch\.", "camera_head."),
    (r"^(depth|point)_head\.projects\.", r"\1_head.projections."),
    (r"^(depth|point)_head\.resize_layers\.", r"\1_head.resizers."),
    (r"\.scratch\.output_conv2\.0\.", ".output_conv2."),
    (r"\.scratch\.output_conv2\.2\.", ".output_conv3."),
    (r"\.scratch\.output_conv1\.", ".output_conv1."),
    (r"\.scratch\.layer(\d)_rn\.", lambda match: f".lateral_convs.{int(match[1]) - 1}."),
    (r"\.scratch\.refinenet(\d)\.", lambda match: f".fusions.{int(match[1]) - 1}."),
    (r"\.resConfUnit1\.", ".skip_unit."),
    (r"\.resConfUnit2\.", ".unit."),
]

DPT_FIELDS = {"patch_size": "patch_size", "features": "dpt_features"}
DPT_FIELDS |= {"out_channels": "dpt_channels", "intermediate_layer_idx": "dpt_layers"}
VIT_FIELDS = {"img_size": "image_size", "patch_size": "patch_size", "embed_dim": "hidden_size"}
VIT_FIELDS |= {"mlp_ratio": "mlp_ratio", "num_register_tokens": "num_register_tokens"}
FIELDS: dict[str, dict[str, str]] = {
    "aggregator": VIT_FIELDS
    | {"depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
    | {"rope_freq": "rope_theta", "init_values": "layer_scale_init"},
    "patch_embed": VIT_FIELDS
    | {"depth": "num_patch_embed_layers", "num_heads": "num_patch_embed_attention_heads"}
    | {"init_values": "patch_embed_layer_scale_init"},
    "camera_head": {"trunk_depth": "camera_head_layers", "num_heads": "camera_head_attention_heads"}
    | {"mlp_ratio": "mlp_ratio", "init_values": "layer_scale_init"},
    "depth_head": DPT_FIELDS,
    "point_head": DPT_FIELDS,
}
"""Section and argument of the official constructors -> field of `VggtConfig`."""

DPT_FIXED = {"conf_activation": "expp1", "pos_embed": True, "feature_only": False, "down_ratio": 1}
BIASES = {"qkv_bias": True, "proj_bias": True, "ffn_bias": True}
FIXED: dict[str, dict[str, Any]] = {
    "aggregator": BIASES
    | {"aa_order": ["frame", "global"], "aa_block_size": 1, "qk_norm": True, "patch_embed": "dinov2_vitl14_reg"},
    "patch_embed": BIASES | {"interpolate_antialias": True, "interpolate_offset": 0.0, "block_chunks": 0},
    "camera_head": {"pose_encoding_type": "absT_quaR_FoV", "trans_act": "linear"}
    | {"quat_act": "linear", "fl_act": "relu"},
    "depth_head": DPT_FIXED | {"output_dim": 2, "activation": "exp"},
    "point_head": DPT_FIXED | {"output_dim": 4, "activation": "inv_log"},
}
"""Arguments that the model here has in this one form."""


def config_from_official(sections: Mapping[str, Mapping[str, Any]]) -> VggtConfig:
    """Translates the arguments of the official constructors; those not given are the published model's.

    Args:
        sections: `aggregator`, `patch_embed`, `camera_head`, `depth_head`, `point_head` -> their arguments; other
            sections are not read.

    Raises:
        ValueError: for all arguments that are unknown, that the model here cannot take, or that contradict another.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    arguments = [(s, name, value) for s in FIELDS for name, value in sections.get(s, {}).items() if name != "dim_in"]
    for section, name, value in arguments:
        if name in FIELDS[section]:
            value = float(value) if name in ("mlp_ratio", "rope_freq") else value
            if values.setdefault(FIELDS[section][name], value) != value:
                faults.append(f"{section}.{name} = {value} where another section says {values[FIELDS[section][name]]}")
        elif name not in FIXED[section]:
            faults.append(f"{section}.{name} is not known here")
        elif value != FIXED[section][name]:
            faults.append(f"{section}.{name} = {value!r}, wanted {FIXED[section][name]!r}")
    config = VggtConfig(**values)
    for section in ("camera_head", "depth_head", "point_head"):
        width = sections.get(section, {}).get("dim_in", 2 * config.hidden_size)
        if width != 2 * config.hidden_size:
            faults.append(f"{section}.dim_in = {width}, wanted twice embed_dim = {2 * config.hidden_size}")
    if faults:
        raise ValueError(f"this configuration is of another model: {'; '.join(faults)}")
    return config


def read_official_config(path: Path) -> VggtConfig:
    """`config_from_official` of the object under `config` in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, no `config`, or a configuration of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ValueError(f"{path} holds no object `config` with the arguments of the official constructors")
    sections = {name: values for name, values in content["config"].items() if name in FIELDS}
    if odd := [name for name, values in sections.items() if not isinstance(values, dict)]:
        raise ValueError(f"{path}: {', '.join(odd)} under `config` must hold the arguments of a constructor by name")
    try:
        return config_from_official(sections)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except TypeError as error:
        raise ValueError(f"{path}: a value has another type than the official constructors take: {error}") from error


def locate_checkpoint(checkpoint: str) -> Path:
    """A local file, or the checkpoint file of a Hub repository (`owner/name`), fetched where it is not cached.

    Raises:
        FileNotFoundError: neither.
        ConnectionError: a Hub id whose files are not cached while the Hub cannot be reached.
    """
    path = Path(checkpoint)
    if path.is_file():
        return path
    looks_local = path.exists() or path.suffix in LOCAL_SUFFIXES
    if looks_local or not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        raise FileNotFoundError(f"{checkpoint} is no file; wanted a .pt or .safetensors file, or a Hub id `owner/name`")
    unreached = None
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(checkpoint, name))
        except LocalEntryNotFoundError as error:
            unreached = error
        except EntryNotFoundError:
            continue
    if unreached is not None:
        raise ConnectionError(
            f"{checkpoint}: the Hub cannot be reached, and none of {', '.join(HUB_FILES)} is cached; fetch one where "
            "there is a network and name the file"
        ) from unreached
    raise FileNotFoundError(f"{checkpoint} is neither a file nor a Hub repository with one of {', '.join(HUB_FILES)}")


class OfficialCheckpoint:
    """The tensors of a checkpoint file, mapped into memory, not read.

    Raises:
        ValueError: for a file that is damaged, that would run code on loading, or that wraps its tensors otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]]
        self.read: Callable[[str], torch.Tensor]
        try:
            if path.suffix == ".safetensors":
                handle = safe_open(path, framework="pt")
                names = handle.keys()
                self.shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in names}
                self.read = handle.get_tensor
            else:
                tensors = _unwrap(torch.load(path, map_location="cpu", mmap=True, weights_only=True), path)
                self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                self.read = tensors.__getitem__
        except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as a file of tensors alone: {error}") from error


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict, either the content itself or under a known wrapper."""
    candidates = [content] + [content.get(key) for key in WRAPPERS if isinstance(content, dict)]
    for candidate in candidates:
        if isinstance(candidate, dict) and candidate and all(isinstance(v, torch.Tensor) for v in candidate.values()):
            return candidate
    places = f"flat or directly under {' or '.join(map(repr, WRAPPERS))}"
    dicts = [candidate for candidate in candidates if isinstance(candidate, dict)]
    best = max(dicts, key=lambda each: sum(isinstance(v, torch.Tensor) for v in each.values()), default={})
    others = [str(name) for name, value in best.items() if not isinstance(value, torch.Tensor)]
    if 0 < len(others) < len(best):
        raise ValueError(
            f"{path} holds among its tensors {_shorten(others)}, which is none: save it again as a state dict "
            f"of tensors alone, {places}"
        )
    found = f"the keys {_shorten(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise ValueError(f"{path} holds {found}, and no tensors there; wanted a state dict, {places}")


def rename(name: str) -> str:
    """Official name of a tensor -> its name in `VggtForReconstruction`."""
    for pattern, replacement in RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def match_names(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Pairs the tensors of an official checkpoint with ours.

    Args:
        found: official name -> shape.
        wanted: our name -> shape, as the official checkpoint has it.

    Returns:
        Our name -> official name, in the order of `wanted`.

    Raises:
        ValueError: for tensors that are missing, unexpected, or of another shape; names all three kinds.
    """
    renamed = [(rename(name), name) for name in found if not _is_ignored(name)]
    sources = dict(renamed)
    faults = {
        "missing (named as here)": [name for name in wanted if name not in sources],
        "unexpected": [source for name, source in renamed if name not in wanted or sources[name] != source],
        "of another shape": [
            f"{sources[name]} {found[sources[name]]}, wanted {shape}"
            for name, shape in wanted.items()
            if name in sources and found[sources[name]] != shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_shorten(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"the tensors are not those of the configured model ({OTHER_SIZE_HINT}): {listed}")
    return {name: sources[name] for name in wanted}


def _is_ignored(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in IGNORED.values())


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, read: Callable[[str], torch.Tensor]
) -> None:
    """Writes a safetensors file tensor by tensor, where the library's own writer wants all of them in memory.

    Args:
        shapes: name -> shape, in the order of the file.
        dtype: of all tensors.
        read: name -> tensor.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data that follow
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in tqdm(shapes, desc=f"writing {path.name}", unit="tensor", disable=not sys.stderr.isatty()):
            file.write(read(name).to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)


def convert(checkpoint: Path, output: Path, config: VggtConfig, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Writes `output` with config.json and model.safetensors of `VggtForReconstruction`, all of it or nothing.

    Args:
        checkpoint: official .safetensors or .pt file.
        output: folder that does not exist yet, or is empty.
        config: the sizes that the checkpoint has.
        dtype: of the written tensors.

    Returns:
        "converted" and every pattern of ignored names -> number of tensors of the checkpoint.

    Raises:
        FileExistsError: `output` holds something.
        ValueError: for a checkpoint that is not of these sizes, or is damaged.
    """
    refuse_existing(output)
    official = OfficialCheckpoint(checkpoint)
    with torch.device("meta"):
        model = VggtForReconstruction(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # The patch projection is a convolution there and a linear layer here, over the same numbers.
    convolution = (config.hidden_size, 3, config.patch_size, config.patch_size)
    try:
        sources = match_names(official.shapes, shapes | {rename(PATCH_PROJECTION): convolution})
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error

    with all_or_nothing(output) as folder:
        model.config.architectures, model.config.dtype = [VggtForReconstruction.__name__], dtype
        model.config.save_pretrained(folder)
        write_safetensors(folder / "model.safetensors", shapes, dtype, lambda name: official.read(sources[name]))
    counts = {label: sum(bool(re.fullmatch(p, name)) for name in official.shapes) for label, p in IGNORED.items()}
    return {"converted": len(sources), **counts}


def refuse_existing(output: Path) -> None:
    """Raises FileExistsError unless `output` can be made without taking anything away."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder; name another, or remove it")


@contextmanager
def all_or_nothing(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` at the end of the block, or vanishes when the block fails.

    Raises:
        FileExistsError: see `refuse_existing`.
    """
    refuse_existing(output)
    output = output.resolve()  # "." has no name
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        unfinished = Path(scratch) / output.name
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(output)


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", required=True, help=".pt or .safetensors file, or a Hub id such as facebook/VGGT-1B"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument(
        "--official-config", type=Path, help="JSON whose `config` holds the official constructors' arguments"
    )
    parser.add_argument(
        "--dtype", choices=[str(d).removeprefix("torch.") for d in SAFETENSORS_DTYPES], default="float32"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        config = read_official_config(options.official_config) if options.official_config else VggtConfig()
        counts = convert(locate_checkpoint(options.checkpoint), options.output, config, getattr(torch, options.dtype))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    ignored = ", ".join(f"{count} {label}" for label, count in counts.items() if label != "converted" and count)
    print(f"{options.output}: {counts['converted']} tensors converted, ignored: {ignored or 'none'}")


if __name__ == "__main__":
    main()
