"""Time and memory of the encoder over views and resolutions, as JSON and as a plot.

    python -m benchmarks.bench_encode
    python -m benchmarks.bench_encode --compile default --cuda-graphs --accuracy --profile
    PYTHONPATH=../vggt python -m benchmarks.bench_encode --reference vggt.models.aggregator:Aggregator

On a GPU the encoder has its full size, otherwise a tiny one. Weights are random, a call encodes one scene without
gradients. A reference is any class whose instances take float images [1, V, 3, H, W] in [0, 1]: it is timed in the same
run with its weights in `--dtype`, and with float32 weights under autocast.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile

from evaluation.files import write_json
from modeling_vggt_qwen3.configuration_vggt_qwen3 import PerceiverConfig, VggtConfig
from modeling_vggt_qwen3.modeling_vggt import VggtModel

TINY = {
    "image_size": 112,
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_patch_embed_layers": 3,
    "num_patch_embed_attention_heads": 6,
}
GPU_SIZES = "1x336x518,8x336x518,32x336x518,100x336x518,1x448x448,2x448x448,4x448x448,8x448x448,16x448x448,32x448x448"
CPU_SIZES = "1x112x112,4x112x112,8x112x112,1x224x224,4x224x224"
COMPILE_MODES = ("none", "default", "max-autotune-no-cudagraphs")
DTYPES = ("bfloat16", "float16", "float32")
PROFILE_ROWS = 30


@dataclass(frozen=True)
class Size:
    """Views of a scene, and their height and width in pixels."""

    views: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, astuple(self)))


@dataclass(frozen=True)
class Settings:
    """What is the same for everything in a run."""

    config: VggtConfig
    device: torch.device
    dtype: torch.dtype
    attention: str
    compile_mode: str
    cuda_graphs: bool
    kernels: bool
    feature_layers: tuple[int, ...]
    warmup: int
    repeats: int


def parse_sizes(text: str, patch_size: int) -> list[Size]:
    """`8x448x448,1x336x518` -> sizes.

    Raises:
        ValueError: for anything but views x height x width, or sides that are no multiples of the patch size.
    """
    try:
        sizes = [Size(*map(int, part.split("x"))) for part in text.split(",")]
    except (ValueError, TypeError) as error:
        raise ValueError(f"--sizes {text}: wanted views x height x width, as in 8x448x448,1x336x518") from error
    wrong = [
        str(size) for size in sizes if min(astuple(size)) < 1 or size.height % patch_size or size.width % patch_size
    ]
    if wrong:
        raise ValueError(f"--sizes {', '.join(wrong)}: wanted 1 view or more and sides in multiples of {patch_size}")
    return sizes


def count_operations(config: VggtConfig, size: Size) -> float:
    """Multiplications and additions, in 10¹², of the matrix products of one call."""
    dim = config.hidden_size
    patches = (size.height // config.patch_size) * (size.width // config.patch_size)
    tokens = config.num_special_tokens + patches  # the ViT has as many: a class token and the registers
    linear = 2 * dim * dim * (4 + 2 * config.mlp_ratio)  # a token and block
    attention = 4 * dim  # a pair of tokens and block
    vit = config.num_patch_embed_layers * tokens * (linear + attention * tokens)
    frame = config.num_hidden_layers * tokens * (linear + attention * tokens)
    across = config.num_hidden_layers * tokens * (linear + attention * tokens * size.views)
    projection = 2 * 3 * config.patch_size**2 * dim * patches
    return size.views * (vit + frame + across + projection) / 1e12


def build_encoder(config: VggtConfig, device: torch.device, seed: int = 0) -> VggtModel:
    """A float32 encoder whose every weight matters: a fresh one's branches are scaled down to all but nothing."""
    with torch.device("meta"):
        model = VggtModel(config)
    model = model.to_empty(device=device).eval()
    rng = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng, device=device)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.1 * noise
        elif name.endswith("_scale"):
            parameter.data = 0.3 + 0.1 * noise
        else:
            parameter.data = noise / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 0.1 * noise
    return model


def build_ours(settings: Settings) -> VggtModel:
    """The encoder as it is timed."""
    model = build_encoder(settings.config, settings.device).to(settings.dtype)
    model.set_fused_rotary(settings.kernels).set_attn_implementation(settings.attention)
    if settings.compile_mode == "none":
        return model
    return model.compile_blocks(cuda_graphs=settings.cuda_graphs, mode=settings.compile_mode)


def find_class(spec: str) -> type[nn.Module]:
    """The class that `module:Class` names.

    Raises:
        ValueError: there is none on PYTHONPATH.
    """
    module_name, _, class_name = spec.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--reference {spec}: {error}; put its folder on PYTHONPATH, name it module:Class") from error


def random_images(size: Size, settings: Settings) -> torch.Tensor:
    """Float images [1, V, 3, H, W], the same in every run."""
    rng = torch.Generator(settings.device).manual_seed(0)
    return torch.rand(1, size.views, 3, size.height, size.width, generator=rng, device=settings.device)


def time_calls(call: Callable[[], Any], settings: Settings) -> dict[str, float | None]:
    """Median, fastest and slowest call in milliseconds; peak memory in gigabytes (10⁹ bytes), on a GPU alone.

    Of CUDA graphs, of all sizes so far, the whole pool counts: replays leave no trace in the allocator's peak. So the
    largest size comes first, whose graph's pool serves the others, or which has none.
    """
    on_gpu = settings.device.type == "cuda"
    for _ in range(settings.warmup):
        call()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(settings.repeats):
        start = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    peak = (torch.cuda.max_memory_allocated() + pool_bytes(torch.cuda.memory_snapshot())) / 1e9 if on_gpu else None
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "peak_gb": peak}


def pool_bytes(segments: Sequence[dict[str, Any]]) -> int:
    """Bytes that the pools of CUDA graphs hold beside what counts as allocated, from the allocator's snapshot."""
    in_pools = [segment for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0)]
    return sum(segment["total_size"] - segment["allocated_size"] for segment in in_pools)


def time_encoder(
    name: str, encode: Callable[[torch.Tensor], Any], sizes: Sequence[Size], settings: Settings
) -> list[dict[str, Any]]:
    """One row a size; a size that does not fit into memory has `error` in place of figures."""
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()  # graphs of an encoder timed before have pools
    rows = []
    for size in sizes:
        row = {"encoder": name, **asdict(size), "tera_operations": count_operations(settings.config, size)}
        try:
            images = random_images(size, settings)
            row |= time_calls(lambda images=images: encode(images), settings)
            memory = "" if row["peak_gb"] is None else f"{row['peak_gb']:7.2f} GB"
            print(f"{name:>20} {size!s:>13} {row['median_ms']:9.1f} ms {memory}", flush=True)
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
            print(f"{name:>20} {size!s:>13}  out of memory", flush=True)
        rows.append(row)
    return rows


def time_ours(sizes: Sequence[Size], settings: Settings, profile_path: Path | None) -> list[dict[str, Any]]:
    """The encoder here; `profile_path` names a file for the operations of a call at the largest size."""
    model = build_ours(settings)

    def encode(images: torch.Tensor) -> None:
        model(images, feature_layers=settings.feature_layers)

    rows = time_encoder("VggtModel", encode, sizes, settings)
    if profile_path is not None:
        images = random_images(sizes[0], settings)
        profile_path.write_text(profile_call(lambda: encode(images), settings), encoding="utf-8")
    return rows


def time_reference(
    reference_class: type[nn.Module], arguments: dict[str, Any], sizes: Sequence[Size], settings: Settings
) -> list[dict[str, Any]]:
    """The other encoder, in its two conditions."""
    device, dtype = settings.device, settings.dtype
    model = reference_class(**arguments).to(device).eval()
    name = reference_class.__name__

    def under_autocast(images: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model(images)

    rows = time_encoder(f"{name} autocast", under_autocast, sizes, settings)
    model.to(dtype)
    return rows + time_encoder(f"{name} weights", lambda images: model(images.to(dtype)), sizes, settings)


def relative_errors(settings: Settings, size: Size) -> dict[str, float]:
    """Layer -> norm of the difference to float32 arithmetic on the same weights, over the norm of the latter; eager."""
    exact = build_encoder(settings.config, settings.device)
    exact.set_attn_implementation("sdpa")
    images = random_images(size, settings)
    wanted = exact(images, feature_layers=settings.feature_layers).feature_maps
    rounded = copy.deepcopy(exact).to(settings.dtype).set_fused_rotary(settings.kernels)
    rounded.set_attn_implementation(settings.attention)
    found = rounded(images, feature_layers=settings.feature_layers).feature_maps
    return {str(layer): float((found[layer] - wanted[layer]).norm() / wanted[layer].norm()) for layer in wanted}


def profile_call(call: Callable[[], Any], settings: Settings) -> str:
    """A table of the operations that took longest in one call after a first."""
    call()
    on_gpu = settings.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as record:
        call()
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return record.key_averages().table(sort_by=key, row_limit=PROFILE_ROWS, max_name_column_width=80)


def describe_machine(settings: Settings) -> dict[str, str]:
    """What the figures depend on beside the code."""
    on_gpu = settings.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(settings.device) if on_gpu else platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Latency, and on a GPU memory, over the number of views: a colour an encoder, a line style a resolution."""
    import matplotlib as mpl  # a development requirement: the figures themselves need it not

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    measured = [row for row in rows if "error" not in row]
    panels = [("median_ms", "ms a call")] + [("peak_gb", "GB at the peak")] * any(row["peak_gb"] for row in measured)
    encoders = list(dict.fromkeys(row["encoder"] for row in measured))
    resolutions = list(dict.fromkeys((row["height"], row["width"]) for row in measured))
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), squeeze=False, layout="constrained")
    for axis, (key, label) in zip(axes[0], panels):
        for encoder in encoders:
            for resolution, style in zip(resolutions, ("-", "--", ":", "-.") * len(resolutions)):
                line = [r for r in measured if r["encoder"] == encoder and (r["height"], r["width"]) == resolution]
                line.sort(key=lambda row: row["views"])
                legend = f"{encoder}, {resolution[0]} x {resolution[1]}"
                views, values = [row["views"] for row in line], [row[key] for row in line]
                axis.plot(views, values, style, marker="o", color=f"C{encoders.index(encoder)}", label=legend)
        axis.set(xscale="log", yscale="log", xlabel="views", ylabel=label)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted({row["views"] for row in measured}))
        for formatted in (
            axis.xaxis.set_major_formatter,
            axis.yaxis.set_major_formatter,
            axis.yaxis.set_minor_formatter,
        ):
            formatted("{x:g}")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(path)
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/benchmarks/encode.json"), help="JSON; the plot lies beside"
    )
    parser.add_argument("--sizes", help="views x height x width, with commas between")
    parser.add_argument("--config", type=Path, help="JSON with fields of VggtConfig")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; by default bfloat16 on a GPU, else float32")
    parser.add_argument("--kernels", action="store_true", help="let our own kernel normalise and turn q and k")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "fa3", "flash_attention_2", "eager"))
    parser.add_argument("--compile", default="none", choices=COMPILE_MODES)
    parser.add_argument("--cuda-graphs", action="store_true", help="with --compile")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--reference", help="module:Class of another encoder on PYTHONPATH")
    parser.add_argument(
        "--reference-arguments", type=json.loads, default={}, help="JSON of its constructor's arguments"
    )
    parser.add_argument("--accuracy", action="store_true", help="also the error against float32, at the smallest size")
    parser.add_argument("--profile", action="store_true", help="also a table of operations, at the largest size")
    return parser.parse_args(arguments)


def read_settings(options: argparse.Namespace) -> Settings:
    """Settings from the command line, with what the device suggests where nothing was said."""
    on_gpu = options.device.startswith("cuda")
    fields = json.loads(options.config.read_text(encoding="utf-8")) if options.config else {} if on_gpu else TINY
    config = VggtConfig(**fields)
    if options.cuda_graphs and options.compile == "none":
        raise ValueError("--cuda-graphs: only with --compile")
    kept = PerceiverConfig().feature_layers
    if config.num_hidden_layers <= max(kept):
        kept = (-1, *range(config.num_hidden_layers))
    return Settings(
        config=config,
        device=torch.device(options.device),
        dtype=getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32")),
        attention=options.attention,
        compile_mode=options.compile,
        cuda_graphs=options.cuda_graphs,
        kernels=options.kernels,
        feature_layers=tuple(kept),
        warmup=options.warmup,
        repeats=options.repeats,
    )


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        settings = read_settings(options)
        default_sizes = GPU_SIZES if settings.device.type == "cuda" else CPU_SIZES
        sizes = parse_sizes(options.sizes or default_sizes, settings.config.patch_size)
        sizes.sort(key=lambda size: count_operations(settings.config, size), reverse=True)
        reference_class = find_class(options.reference) if options.reference else None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = time_ours(sizes, settings, options.output.with_suffix(".profile.txt") if options.profile else None)
    result: dict[str, Any] = {"machine": describe_machine(settings), "settings": describe(settings), "rows": rows}
    write_json(options.output, result)  # whatever becomes of the rest
    if options.accuracy:
        result["relative_errors"] = relative_errors(settings, sizes[-1])
    if reference_class is not None:
        rows += time_reference(reference_class, options.reference_arguments, sizes, settings)
    write_json(options.output, result)
    plot(rows, options.output.with_suffix(".svg"))
    print(f"{options.output}, {options.output.with_suffix('.svg')}")


def describe(settings: Settings) -> dict[str, Any]:
    """Settings for JSON."""
    keys = ("attention", "compile_mode", "cuda_graphs", "kernels", "feature_layers", "warmup", "repeats")
    values = {key: getattr(settings, key) for key in keys}
    return {**values, "dtype": str(settings.dtype).removeprefix("torch."), "config": settings.config.to_diff_dict()}


if __name__ == "__main__":
    main()
