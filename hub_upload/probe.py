"""Asks a model fixed questions about fixed pictures, so that two processes can compare what they get.

It stands alone: verify.py runs this file in a fresh interpreter that knows nothing of the project.

    python probe.py --repo ORG/NAME --reference reference.safetensors --blocked modeling_vggt_qwen3,processing
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

MODEL_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
OTHER_CLASSES = {
    "AutoConfig": "VggtQwen3Config",
    "AutoProcessor": "VggtQwen3Processor",
    "AutoImageProcessor": "VggtQwen3ImageProcessor",
}
MODEL_CLASS = "VggtQwen3ForConditionalGeneration"
NUM_VIEWS, NUM_TOKENS = 3, 8
QUESTION, INSTRUCTION = "What is next to the table?", "Place an anchor on the chair."
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


def probe_inputs(processor: Any) -> dict[str, Any]:
    """Batches by name: photographs alone, photographs with cameras and depth, and no photograph at all."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (NUM_VIEWS, 6, 8, 3), dtype=np.uint8)
    views = list(coarse.repeat(24, axis=1).repeat(24, axis=2))
    height, width = views[0].shape[:2]
    intrinsics = np.tile([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]], (NUM_VIEWS, 1, 1))
    cameras = {
        "intrinsics": [intrinsics],
        "world_from_cam": [np.stack([_level_camera(view) for view in range(NUM_VIEWS)])],
        "depth": [rng.uniform(0.8, 5.0, (NUM_VIEWS, height, width)).astype(np.float32)],
    }
    question = _prompt(processor, QUESTION, NUM_VIEWS, "scanqa")
    action = _prompt(processor, INSTRUCTION, NUM_VIEWS, "actions")
    blind = _prompt(processor, QUESTION, 0, "scanqa")
    return {
        "photographs": processor(images=[views], text=[question]),
        "cameras": processor(images=[views], text=[action], **cameras),
        "blind": processor(text=[blind]),
    }


def _level_camera(view: int) -> NDArray[np.float64]:
    """world_from_cam of a camera 1.5 m above the floor that looks level, to another side for each view."""
    angle = 0.7 * view
    right, ahead = [np.cos(angle), np.sin(angle), 0.0], [-np.sin(angle), np.cos(angle), 0.0]
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], ahead], axis=1)
    matrix[:3, 3] = [0.3 * view, -0.2 * view, 1.5]
    return matrix


def _prompt(processor: Any, question: str, num_views: int, task: str) -> str:
    messages = processor.conversation(question, num_views=num_views, task=task)
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def probe_outputs(model: Any, processor: Any) -> Arrays:
    """Logits [vocabulary] after each prompt and the tokens of a greedy answer, as numpy arrays by name."""
    import torch

    outputs = {}
    with torch.inference_mode():
        for name, batch in probe_inputs(processor).items():
            batch = batch.to(model.device)
            logits = model(**batch, logits_to_keep=1).logits[0, -1]
            tokens = model.generate(**batch, do_sample=False, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS)
            outputs[f"{name}.logits"] = logits.float().cpu().numpy()
            outputs[f"{name}.tokens"] = tokens[0, batch["input_ids"].shape[1] :].cpu().numpy()
    return outputs


def compare(found: Arrays, reference: Arrays, dtype: str) -> list[str]:
    """What differs, in words; nothing where the outputs agree."""
    faults = []
    for name, wanted in reference.items():
        if found[name].shape != wanted.shape:
            faults.append(f"{name} has the shape {found[name].shape}, wanted {wanted.shape}")
        elif name.endswith(".logits"):
            scale = float(np.abs(wanted).max())
            worst = float(np.abs(found[name] - wanted).max())
            if not worst <= TOLERANCE[dtype] * scale:
                faults.append(f"{name} differ by up to {worst:.3g} (they reach {scale:.3g}) from the staged model's")
        elif dtype == "float32" and not np.array_equal(found[name], wanted):
            faults.append(f"{name} are {found[name].tolist()}, the staged model gave {wanted.tolist()}")
    return faults


class _Blocked(MetaPathFinder):
    """Makes the project's packages unimportable, even where they are installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r} for who has only the repository", name=fullname)


def _refuse_network(*args: Any, **kwargs: Any) -> NoReturn:
    raise OSError("something wants the network: a repository must load from its own files alone")


def _is_hidden(auto_class: str) -> bool:
    """Whether this version of the library offers an Auto class only beside an optional package, such as torchvision."""
    import transformers

    return hasattr(getattr(transformers, auto_class), "_backends")


def _auto_class(name: str) -> Any:
    """An Auto class; also one that is hidden, as who has that package will find it."""
    import transformers

    if _is_hidden(name):
        return getattr(import_module("transformers.models.auto.image_processing_auto"), name)
    return getattr(transformers, name)


def _load_faults(repo: str, reference: str) -> list[str]:
    """Loads the repository by every Auto class; returns the faults found."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    faults = []
    expected = load_file(reference)
    for auto_class, wanted in OTHER_CLASSES.items():
        found = type(_auto_class(auto_class).from_pretrained(repo, trust_remote_code=True)).__name__
        if found != wanted:
            faults.append(f"{auto_class} gives {found}, wanted {wanted}")
    processor = transformers.AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    for auto_class in MODEL_CLASSES:
        model = getattr(transformers, auto_class).from_pretrained(repo, trust_remote_code=True).eval()
        if type(model).__name__ != MODEL_CLASS:
            faults.append(f"{auto_class} gives {type(model).__name__}, wanted {MODEL_CLASS}")
            continue
        dtype = str(model.dtype).removeprefix("torch.")
        broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
        faults += [f"{auto_class}: {name} is not finite" for name in broken]
        found = compare(probe_outputs(model, processor), expected, dtype)
        faults += [f"{auto_class}: {fault}" for fault in found]
    return faults


def main() -> None:
    """Prints one line of JSON: {"faults": [...], "versions": {...}, "hidden": [Auto classes not on offer]}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--blocked", required=True)
    parser.add_argument("--packages", help="folder of packages that come before the installed ones")
    args = parser.parse_args()
    if args.packages:
        sys.path.insert(0, args.packages)
    sys.meta_path.insert(0, _Blocked(args.blocked.split(",")))
    socket.socket.connect = socket.create_connection = _refuse_network

    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    versions = {module.__name__: module.__version__ for module in (transformers, torch)}
    faults = _load_faults(args.repo, args.reference)
    versions["python"] = sys.version.split()[0]
    hidden = [name for name in (*OTHER_CLASSES, *MODEL_CLASSES) if _is_hidden(name)]
    print(json.dumps({"faults": faults, "versions": versions, "hidden": hidden}))


if __name__ == "__main__":
    main()
