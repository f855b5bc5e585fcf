"""The embedded default: procedural rooms, made on first use, so that every command works without a download."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from datasets_scripts.schema import MANIFEST_NAME

REPOSITORY = Path(__file__).resolve().parents[1]
EMBEDDED_ROOT = "data/rooms"
NUM_SCENES, NUM_HELDOUT = 160, 40

logger = logging.getLogger(__name__)


def embedded_dataset(root: str = EMBEDDED_ROOT) -> str:
    """Path of the embedded dataset, built if it is not there yet.

    Raises:
        RuntimeError: where the build fails; its own message stands above.
    """
    if (Path(root) / MANIFEST_NAME).is_file():
        return root
    logger.info("no dataset named: making %d procedural rooms in %s", NUM_SCENES + NUM_HELDOUT, root)
    command = [
        sys.executable,
        "-m",
        "datasets_scripts.build",
        "--source",
        "rooms",
        "--output",
        str(Path(root).resolve()),
    ]
    command += ["--scenes", str(NUM_SCENES), "--heldout", str(NUM_HELDOUT)]
    if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
        raise RuntimeError(f"the procedural rooms could not be made in {root}; try `{' '.join(command[1:])}` by itself")
    return root
