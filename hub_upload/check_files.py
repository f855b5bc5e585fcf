"""What no published file may be or hold: pickles, training state, secrets, paths of this machine."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import get_token

MODEL_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.py",
    "README.md",
    "LICENSE",
    "LICENSE-VGGT",
    "NOTICE",
)
DATASET_FILES = ("data/*/*.parquet", "manifest.json", "README.md", "LICENSE")
SPACE_FILES = (
    "*.py",
    "README.md",
    "requirements.txt",
    "model.txt",
    "examples/*/cameras.json",
    "examples/*/views/*.jpg",
    "examples/*/depth/*.png",
)
REQUIRED = {
    "model": (
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "LICENSE",
        "NOTICE",
    ),
    "dataset": ("manifest.json", "README.md"),
    "space": ("app.py", "README.md", "requirements.txt", "model.txt"),
}
ALLOWED = {"model": MODEL_FILES, "dataset": DATASET_FILES, "space": SPACE_FILES}

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
TEXT_SUFFIXES = (".md", ".py", ".json", ".txt", ".jinja")
BINARY_SUFFIXES = (".safetensors", ".parquet", ".jpg", ".png")
TRAINING_STATE = re.compile(r"optimizer|scheduler|rng_state|trainer_state|training_args|global_step|zero_|events\.out")

SECRETS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    "an API key": re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}|\bAIza[A-Za-z0-9_-]{35}|\bxox[baprs]-[A-Za-z0-9-]{20,}"),
    "an AWS key": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "a password in an address": re.compile(rb"\b[a-z][a-z+]{2,10}://[^\s:/@\"']+:[^\s:/@\"']{3,}@"),
    "a key that is assigned": re.compile(
        rb"(?i)\b[a-z_]*(?:api_?key|secret|password|access_?token)[\"']?\s*[:=]\s*[\"'][A-Za-z0-9+/_\-]{20,}[\"']"
    ),
}
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/<])/(?:home|root|Users|tmp|var|mnt|media|opt|srv|data|work|workspace|scratch|private)/[\w.\-]+"
    r"|\b[A-Za-z]:\\+[\w.\-]+"
)
LOCAL_VALUE = re.compile(r"^(?:/|~|\.{1,2}/|file:|[A-Za-z]:\\)")
PATH_KEY = re.compile(r"(?:name_or_path|_path|_dir|_folder|_file)$")
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
CONFIGURATIONS = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")


def check_names(folder: Path, repo_type: str) -> list[str]:
    """Faults of which files there are: missing ones, pickles, training state, and what has no place there."""
    faults = [f"{name} is missing" for name in REQUIRED[repo_type] if not (folder / name).is_file()]
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix in PICKLE_SUFFIXES or _is_pickle(path):
            faults.append(f"{name} is a pickle or an archive of pickles, which can run code: use safetensors")
        elif TRAINING_STATE.search(name):
            faults.append(f"{name} belongs to a training run, not to a model")
        elif not any(_matches(name, pattern) for pattern in ALLOWED[repo_type]):
            faults.append(f"{name} has no place in a {repo_type} repository")
    return faults


def check_texts(folder: Path) -> list[str]:
    """Secrets and paths of this machine, in every text and in the head of weights. A secret is never shown."""
    own = get_token()
    faults = []
    for path in _files(folder):
        content = _text_of(path)
        if content is None:
            continue
        name = path.relative_to(folder).as_posix()
        found = [what for what, pattern in SECRETS.items() if pattern.search(content)]
        if own and own.encode() in content:
            found.append("your own token")
        faults += [f"{name} holds {what}: take it out, and revoke it if it was ever shared" for what in found]
        faults += [f"{name} holds a path of a machine, {place}" for place in _machine_paths(name, content)]
    return faults


def check_encodings(folder: Path) -> list[str]:
    """Texts that nobody could read as what they are."""
    faults = []
    for path in _files(folder):
        try:
            if path.suffix in TEXT_SUFFIXES:
                path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            faults.append(f"{path.relative_to(folder).as_posix()} is not UTF-8 ({error.reason} at byte {error.start})")
    return faults


def check_configurations(folder: Path) -> list[str]:
    """Values of configurations that name a place on a disk; a Hub reader has another disk."""
    faults = []
    for name in CONFIGURATIONS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            faults.append(f"{name} is not JSON: {error}")
            continue
        for key, value in _strings(values):
            if value and (PATH_KEY.search(key) or LOCAL_VALUE.match(value)):
                faults.append(f"{name} names a local path: {key} = {value!r}")
    return faults


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and PurePosixPath(name).match(pattern)


def _is_pickle(path: Path) -> bool:
    if path.suffix in BINARY_SUFFIXES:  # a safetensors file may begin with any byte; it is parsed instead
        return False
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLE_STARTS)


def _text_of(path: Path) -> bytes | None:
    """What of a file is text: all of it, the head of safetensors (8 bytes tell its length), or nothing."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
    return None if path.suffix in BINARY_SUFFIXES else path.read_bytes()


def _machine_paths(name: str, content: bytes) -> list[str]:
    """Up to three of them; in a vocabulary, where `/home/` is a word like others, only this machine's own."""
    text = content.decode("utf-8", errors="replace")
    own = [str(path) for path in (Path.cwd(), Path.home(), tempfile.gettempdir())]
    found = {f"{place}/…" for place in own if len(place) > 1 and f"{place}/" in text}
    if name not in VOCABULARIES:
        found |= {match.group() for match in ABSOLUTE_PATH.finditer(text)}
    return sorted(found)[:3]


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, string) of every string within a JSON value."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
