"""Publishes a verified folder: private unless told otherwise, in one commit, tagged, checked after the upload.

    python -m hub_upload.push build/stage --repo-id ORG/NAME
    python -m hub_upload.push build/stage --repo-id ORG/NAME --public --tag v1.0

The token is the one of `hf auth login` or HF_TOKEN. An interrupted upload goes on where it was when the same command is
run again: files that the Hub has are not sent twice, and nothing shows until all of them are there.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from .elsewhere import SUPPORTED
from .record import Staged, read_staged, read_verified, unproved

GIT_ATTRIBUTES = ".gitattributes"
WAITS_S = (1, 2, 4, 8)
MAX_WAIT_S = 60
TRY_AGAIN = (429, 500, 502, 503, 504)
SIGNATURE = re.compile(r"\?[^\s'\"]+")
"""The query of an address: that of storage for large files lets whoever has it write there."""

NOTHING_PUBLISHED = "Nothing was published by this"

Result = TypeVar("Result")


class PushError(RuntimeError):
    """The upload did not come through. The message says what is published and what to do."""


@dataclass(frozen=True)
class Published:
    """Where a folder stands now: its address, commit and tag. `is_new` is False where all of it was there already."""

    url: str
    commit: str
    tag: str
    is_new: bool


@dataclass(frozen=True)
class PushSettings:
    """What is published.

    Attributes:
        folder: staged and verified.
        repo_id: ORG/NAME; must be the one that the card names.
        public: make the repository public when it is created; an existing public one is refused without it.
        tag: name of the revision; None = the folder's fingerprint.
        replace: remove files of the repository that the folder does not have.
    """

    folder: Path
    repo_id: str
    public: bool = False
    tag: str | None = None
    replace: bool = False


def push(settings: PushSettings, api: HfApi | None = None) -> Published:
    """Uploads, checks what arrived, tags.

    Raises:
        NotStagedError: the folder was not staged, not verified, or changed since.
        ValueError: another repository than the card names, or one that must not be overwritten.
        PushError: no token, no right to write, or a Hub that fails for longer than it is worth waiting for.
    """
    staged = read_verified(settings.folder)
    if settings.repo_id != staged.repo_id:
        raise ValueError(
            f"the card of {settings.folder} says {staged.repo_id}, not {settings.repo_id}: stage it again with that "
            "--repo-id"
        )
    if api is None:
        if get_token() is None:
            raise PushError("there is no token: log in by `hf auth login`, or set HF_TOKEN")
        api = HfApi()
    repository = _Repository(api, staged.repo_id, staged.repo_type)
    head = repository.open(public=settings.public)
    remote = repository.files(head)
    stale = sorted(set(remote) - set(staged.files) - {GIT_ATTRIBUTES})
    if stale and not settings.replace:
        raise ValueError(
            f"{staged.repo_id} holds files that {settings.folder} does not have ({', '.join(stale[:5])}"
            f"{', …' if len(stale) > 5 else ''}): say --replace to remove them, or choose another repository"
        )
    commit = repository.commit(settings.folder, staged, stale, head)
    repository.check(settings.folder, staged, commit)
    tag = settings.tag or f"staged-{staged.fingerprint[:12]}"
    repository.tag(tag, commit)
    kind = "" if staged.repo_type == "model" else f"{staged.repo_type}s/"
    return Published(f"{api.endpoint}/{kind}{staged.repo_id}/tree/{tag}", commit, tag, commit != head)


@dataclass(frozen=True)
class _Repository:
    """The calls to the Hub about one repository; each is tried again while the Hub is busy."""

    api: HfApi
    repo_id: str
    repo_type: str

    @property
    def names(self) -> dict[str, str]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    def open(self, public: bool) -> str | None:
        """Creates the repository where it is not there, and returns its newest commit.

        Raises:
            ValueError: it is there and public, which was not asked for.
        """
        look_up = partial(self.api.repo_info, **self.names)
        try:
            info = self._patiently("looking it up", look_up)
        except RepositoryNotFoundError:
            sdk = {"space_sdk": "gradio"} if self.repo_type == "space" else {}
            create = partial(self.api.create_repo, **self.names, **sdk, private=not public, exist_ok=True)
            self._patiently("creating it", create)
            try:
                info = self._patiently("looking it up", look_up)
            except RepositoryNotFoundError as error:
                raise PushError(
                    f"{self.repo_id} is there, but this token does not show it: take one of a member with access to "
                    f"it, or choose another repository. {NOTHING_PUBLISHED}."
                ) from error
        if not info.private and not public:
            raise ValueError(f"{self.repo_id} is public: say --public if everybody may see this")
        return info.sha

    def files(self, revision: str | None, standing: str = NOTHING_PUBLISHED) -> dict[str, str]:
        """Path -> sha256 (of large files) or git's sha1 (of small ones) at a commit."""
        list_files = partial(self.api.repo_info, **self.names, revision=revision, files_metadata=True)
        siblings = self._patiently("listing its files", list_files, standing).siblings or []
        return {each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id for each in siblings}

    def commit(self, folder: Path, staged: Staged, stale: list[str], head: str | None) -> str:
        """Uploads every file and makes one commit of them; nothing shows before that. Returns the commit."""

        def still_there() -> list[str]:
            if not stale:
                return []
            siblings = self.api.repo_info(**self.names).siblings or []
            found = {each.rfilename for each in siblings}  # not those of a commit that came through without an answer
            return [name for name in stale if name in found]

        def attempt() -> str:
            operations: list[Any] = [CommitOperationDelete(name) for name in still_there()]
            operations += [CommitOperationAdd(name, str(folder / name)) for name in sorted(staged.files)]
            message = f"Publish {staged.repo_id} ({staged.fingerprint[:12]})"
            return self.api.create_commit(
                **self.names, operations=operations, commit_message=message, parent_commit=head
            ).oid

        return self._patiently("uploading", attempt)

    def check(self, folder: Path, staged: Staged, commit: str) -> None:
        """Raises PushError where the Hub does not hold the very files of the folder."""
        remote = self.files(commit, f"The files are at {commit}, neither checked nor tagged")
        wrong = [
            name
            for name, digest in staged.files.items()
            if remote.get(name) != digest and not _is_small_file(folder / name, digest, remote.get(name))
        ]
        if wrong:
            raise PushError(
                f"{self.repo_id} was written at {commit}, but {', '.join(wrong[:5])} arrived otherwise than "
                "verified; it was not tagged: run the command again"
            )

    def tag(self, tag: str, commit: str) -> None:
        """Names the commit.

        Raises:
            ValueError: the name is taken by another commit.
        """
        standing = f"The files are published at {commit}, only the tag {tag} is missing"
        refs = self._patiently("listing its tags", partial(self.api.list_repo_refs, **self.names), standing)
        taken = {each.name: each.target_commit for each in refs.tags}
        if taken.get(tag, commit) != commit:
            raise ValueError(
                f"the files are published at {commit}, but the tag {tag} names {taken[tag]} already: choose another "
                "--tag"
            )
        if tag not in taken:
            make = partial(self.api.create_tag, **self.names, tag=tag, revision=commit, exist_ok=True)
            self._patiently("tagging it", make, standing)

    def _patiently(self, doing: str, call: Callable[[], Result], standing: str = NOTHING_PUBLISHED) -> Result:
        """Calls the Hub, and again after a wait while it is busy or failing.

        Args:
            doing: what the call is for.
            standing: what is published if it fails.

        Raises:
            RepositoryNotFoundError: as the Hub says.
            PushError: any other refusal, in words.
        """
        for wait_s in (*WAITS_S, None):
            try:
                return call()
            except RepositoryNotFoundError:
                raise
            except (HTTPError, RuntimeError) as error:
                failure = error if isinstance(error, HTTPError) else error.__cause__  # the client wraps that of a file
                if not isinstance(failure, HTTPError):
                    raise
            status = failure.response.status_code if isinstance(failure, HfHubHTTPError) else None
            if wait_s is None or not (status is None or status in TRY_AGAIN):
                answer = f"{self.repo_id}, {doing}: {_in_short(status, failure)}"
                raise PushError(f"{answer}. {self._way_out(status)}. {standing}.") from failure
            wait_s = _asked_wait(failure) or wait_s
            print(f"{doing}: {_in_short(status, failure)}; again in {wait_s:.0f} s", file=sys.stderr)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _way_out(self, status: int | None) -> str:
        if status == 401:
            return "The Hub does not accept the token: log in again by `hf auth login`, or set HF_TOKEN"
        if status == 403:
            return f"The token may not write to {self.repo_id}: take one with the role `write` of a member"
        if status in (409, 412):
            return "Somebody else changed the repository meanwhile: look at it, then run the command again"
        if status is None or status in TRY_AGAIN:
            return "Run the same command again later: what has arrived is not sent again"
        return "The Hub's answer stands in the brackets"


def _asked_wait(failure: HTTPError) -> float | None:
    """Seconds that the Hub asks to wait for, within reason."""
    if not isinstance(failure, HfHubHTTPError):
        return None
    asked = failure.response.headers.get("Retry-After", "")
    return min(float(asked), MAX_WAIT_S) if asked.isdecimal() else None


def _in_short(status: int | None, failure: HTTPError) -> str:
    words = SIGNATURE.sub("?…", str(failure)).strip().splitlines()
    return f"{f'status {status}' if status else 'no answer'} ({words[0] if words else type(failure).__name__})"


def _is_small_file(path: Path, digest: str, name: str | None) -> bool:
    """Whether the Hub holds a file as it was verified, under git's name of its contents, as it knows small ones.

    Args:
        path: of the file here, which may have changed since.
        digest: sha256 of what was verified.
        name: by which the Hub knows it, None where it does not; a sha256 is that of a large file.
    """
    if name is None or len(name) == len(digest):
        return False
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return name == git and hashlib.sha256(content).hexdigest() == digest


def main(argv: list[str] | None = None) -> Published:
    """Publishes the folder of the command line and prints its address."""
    parser = argparse.ArgumentParser(prog="python -m hub_upload.push", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what hub_upload.verify passed")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="where to; as it was staged")
    parser.add_argument("--public", action="store_true", help="for everybody to see; by default private")
    parser.add_argument("--tag", help="name of this revision; by default the fingerprint of its files")
    parser.add_argument("--replace", action="store_true", help="remove files that the repository holds besides")
    settings = PushSettings(**vars(parser.parse_args(argv)))
    published = push(settings)
    if read_staged(settings.folder).repo_type == "model" and (missing := unproved(settings.folder, SUPPORTED)):
        print(
            f"note: not verified under transformers {', '.join(missing)}; `python -m hub_upload.verify "
            f"{settings.folder}` without --installed-only does it",
            file=sys.stderr,
        )
    print(published.url if published.is_new else f"{published.url} (it was there already)")
    return published


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
