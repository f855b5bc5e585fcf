"""Proves that a staged folder will work for who has nothing else, or says all that is wrong with it.

    python -m hub_upload.verify build/stage       a model also under the oldest and newest transformers, fetched by pip
    python -m hub_upload.verify build/stage --installed-only
    python -m hub_upload.verify build/space --packages build/space-packages       where gradio is not installed

Files: safetensors only, no training state, no secret, no path of this machine, a card with a licence, code that the
library will find, the very bytes that were staged. Then a fresh interpreter loads them by every Auto class, in another
folder, offline, from an emulated Hub cache, with the project unimportable, and gives the logits and answers that the
staged model gave. Only then does push.py take the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from .check_card import check_card
from .check_code import check_code
from .check_data import check_data
from .check_files import check_configurations, check_encodings, check_names, check_texts
from .check_weights import check_weights
from .elsewhere import SUPPORTED, install_transformers, prove
from .record import Staged, clear_verified, hash_files, read_staged, write_verified


class NotPublishableError(ValueError):
    """A folder that must not be published. The message lists every fault."""


def verify(
    folder: Path, transformers_versions: Sequence[str] = (), packages: Path | None = None
) -> list[dict[str, Any]]:
    """Verifies a staged folder and records it.

    Args:
        folder: what stage.py made.
        transformers_versions: to prove a model under, besides the installed one.
        packages: folder of packages that come before the installed ones.

    Returns:
        One mapping a process: {"versions": of the libraries that loaded it, "hidden": Auto classes that this version
        offers only beside further packages}.

    Raises:
        NotStagedError: it was not staged.
        NotPublishableError: with every fault found.
        RuntimeError: a version of transformers cannot be installed.
    """
    staged = read_staged(folder)
    clear_verified(folder)
    _raise_faults(folder, static_faults(folder, staged))
    places = [packages]
    if staged.repo_type == "model":
        proved = None if packages else installed_version("transformers")
        places += [install_transformers(version) for version in transformers_versions if version != proved]
    results = [prove(folder, staged, packages) for packages in places]
    _raise_faults(folder, [f"{_name(result)}{fault}" for result in results for fault in result["faults"]])
    write_verified(folder, staged, [result["versions"] for result in results])
    return results


def static_faults(folder: Path, staged: Staged) -> list[str]:
    """Everything that can be seen without loading anything."""
    faults = changed_files(folder, staged) + check_names(folder, staged.repo_type) + check_texts(folder)
    if unreadable := check_encodings(folder):
        return faults + unreadable
    faults += check_card(folder, staged.repo_type)
    if staged.repo_type != "model":
        return faults + (check_data(folder, staged.facts["own_data"]) if staged.repo_type == "dataset" else [])
    faults += check_configurations(folder) + check_weights(folder)
    return faults + check_code(folder, staged.facts["auto_map"])


def changed_files(folder: Path, staged: Staged) -> list[str]:
    """How the folder differs from what was staged."""
    found = hash_files(folder)
    faults = [f"{name} was staged and is missing now" for name in sorted(set(staged.files) - set(found))]
    faults += [f"{name} was not staged" for name in sorted(set(found) - set(staged.files))]
    both = sorted(set(found) & set(staged.files))
    return faults + [f"{name} is not what was staged" for name in both if found[name] != staged.files[name]]


def _raise_faults(folder: Path, faults: list[str]) -> None:
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in dict.fromkeys(faults))
        raise NotPublishableError(f"{folder} must not be published:\n{lines}")


def _name(result: dict[str, Any]) -> str:
    version = result["versions"].get("transformers")
    return f"transformers {version}: " if version else ""


def main(argv: list[str] | None = None) -> None:
    """Verifies the folder of the command line and prints where it was proved."""
    parser = argparse.ArgumentParser(prog="python -m hub_upload.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what hub_upload.stage made")
    parser.add_argument(
        "--transformers",
        nargs="+",
        default=SUPPORTED,
        metavar="VERSION",
        help=f"prove a model under these, by pip ({' '.join(SUPPORTED)})",
    )
    parser.add_argument("--installed-only", action="store_true", help="prove it under what is installed alone")
    parser.add_argument("--packages", type=Path, help="folder of packages that come before the installed ones")
    options = parser.parse_args(argv)
    versions = () if options.installed_only else options.transformers
    for result in verify(options.folder, versions, options.packages):
        print("loads under " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()))
        for auto_class in result.get("hidden", []):
            print(f"  there {auto_class} is on offer only where torchvision is installed")
    print(f"next: python -m hub_upload.push {options.folder} --repo-id {read_staged(options.folder).repo_id}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
