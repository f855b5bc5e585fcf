"""What is kept of visitors, and for how long: files in one folder, gone when the page is closed or after a while."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from room import Room

KEPT_S, SWEEP_S = 1800, 300
VIEW_QUALITY = 90


class Session:
    """What one visitor shows, and the files that the page is given of it.

    Args:
        room: what is shown.
        root: folder of all visitors; the name of this one's within it cannot be guessed.
    """

    def __init__(self, room: Room, root: Path) -> None:
        self.room, self.began = room, time.time()
        self.folder = root / secrets.token_hex(16)
        self.folder.mkdir(parents=True)
        self.num_files = 0

    def new_file(self, suffix: str) -> Path:
        """A place that no browser has seen yet."""
        self.num_files += 1
        return self.folder / f"{self.num_files}{suffix}"

    def write_views(self, views: Sequence[Image.Image]) -> list[str]:
        """Files of views, in their order."""
        paths = [self.new_file(".jpg") for _ in views]
        for path, view in zip(paths, views, strict=True):
            view.save(path, quality=VIEW_QUALITY)
        return [str(path) for path in paths]


class Visitors:
    """All sessions, by the name of the page that each belongs to.

    `uploads` is where the library may put what arrives; `rooms` holds what pages are given. Both are removed on exit.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="visitors-")).resolve()
        self.uploads, self.rooms = self.root / "uploads", self.root / "rooms"
        for folder in (self.uploads, self.rooms):
            folder.mkdir()
        self.sessions: dict[str, Session] = {}

    def show(self, page: str, room: Room) -> Session:
        """A new session in place of the page's old one."""
        self.leave(page)
        self.sessions[page] = Session(room, self.rooms)
        return self.sessions[page]

    def leave(self, page: str) -> None:
        """Forgets the room of a page and removes its files."""
        session = self.sessions.pop(page, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)

    def sweep(self, age_s: float = KEPT_S) -> None:
        """Ends older sessions, and removes older uploads: those that were broken off leave files behind."""
        limit = time.time() - age_s
        for page in [page for page, session in list(self.sessions.items()) if session.began <= limit]:
            self.leave(page)
        for path in self.uploads.rglob("*"):
            if path.is_file() and path.stat().st_mtime <= limit:
                path.unlink(missing_ok=True)

    def sweep_now_and_then(self) -> None:
        """Sweeps for as long as the process lives."""

        def run() -> None:
            while True:
                time.sleep(SWEEP_S)
                self.sweep()

        threading.Thread(target=run, name="sweep", daemon=True).start()

    def close(self) -> None:
        """Removes everything."""
        shutil.rmtree(self.root, ignore_errors=True)
