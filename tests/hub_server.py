"""A small Hub on 127.0.0.1: the calls that the real client makes to create, fill, tag and read repositories.

It checks what it is sent (hashes, sizes, parents, tokens) and can be told to fail: an answer of any status, a
connection that is cut off in the middle of an upload, an upload that hangs until its sender is gone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "localtesttokenlocaltesttoken1234"
READ_ONLY_TOKEN = "hf_" + "localreadonlylocalreadonly123456"
LFS_SUFFIXES = (".safetensors", ".parquet")
LFS_BYTES = 10_000_000
HELD_S = 30.0
BLOCK = 65_536


@dataclass(frozen=True)
class Blob:
    """A file: a small one with its content, a large one by its sha256."""

    size: int
    content: bytes | None = None
    oid: str | None = None

    @property
    def git_oid(self) -> str:
        content = self.content if self.content is not None else f"pointer {self.oid} {self.size}".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def lfs(self) -> dict[str, Any] | None:
        return (
            None if self.oid is None else {"sha256": self.oid, "oid": self.oid, "size": self.size, "pointerSize": 134}
        )


@dataclass
class Repo:
    """A repository: its commits (newest last) and its tags."""

    private: bool
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, Blob]) -> str:
        lines = [f"{len(self.commits)}"] + [f"{path} {blob.git_oid}" for path, blob in sorted(files.items())]
        sha = hashlib.sha1("\n".join(lines).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        """(sha, files) of a branch, tag or commit."""
        wanted = self.commits[-1][0] if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD path` matches."""

    pattern: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int | None = None
    holds: bool = False


@dataclass
class Hub:
    """State of the server. `cdn`: its other name, for files; `log`: every request as `METHOD path status`."""

    url: str = ""
    cdn: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    chunk_bytes: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fail(self, pattern: str, status: int, times: int = 1, **headers: str) -> None:
        """Answers so."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(pattern, times, status=status, headers=named))

    def cut(self, pattern: str, after_bytes: int, times: int = 1) -> None:
        """Closes the connection after so many bytes of the body."""
        self.faults.append(Fault(pattern, times, after_bytes=after_bytes))

    def hold(self, pattern: str, after_bytes: int) -> None:
        """Reads so many bytes of the body, sets `held`, and waits until the sender is gone."""
        self.faults.append(Fault(pattern, 1, after_bytes=after_bytes, holds=True))

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def requests(self, pattern: str) -> list[str]:
        """Those of the log that match."""
        return [line for line in self.log if re.search(pattern, line)]

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Contents of a revision."""
        _, files = self.repos[kind, repo_id].at(revision)
        return {path: self.content(blob) for path, blob in files.items()}

    def content(self, blob: Blob) -> bytes:
        return blob.content if blob.content is not None else self.objects[blob.oid]


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that listens while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(hub))
    server.daemon_threads = True
    hub.url, hub.cdn = (f"http://{host}:{server.server_address[1]}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


def _handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args: Any) -> None:
        """Nothing is printed; the Hub keeps its own log."""

    def _serve(self) -> None:
        request = f"{self.command} {self.path}"
        fault = self.hub.take_fault(request)
        if fault is not None and fault.after_bytes is not None:
            return self._break_off(fault, request)
        body = self._read_body()
        if fault is not None:
            return self._answer(fault.status, json.dumps({"error": "as told"}).encode(), fault.headers)
        try:
            with self.hub.lock:
                self._dispatch(body)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._answer(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)

    def _break_off(self, fault: Fault, request: str) -> None:
        self.rfile.read(min(fault.after_bytes, int(self.headers.get("Content-Length", 0))))
        self.hub.log.append(f"{request} broken")
        if fault.holds:
            self.hub.held.set()
            self.hub.closing.wait(HELD_S)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        blocks = []
        while size := int(self.rfile.readline().strip(), 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _dispatch(self, body: bytes) -> None:
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        for method, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                return handle(self, body, query, **match.groupdict())
        raise Refusal(404, "NotFound", f"no such call: {self.command} {path}")

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.hub.log.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # Who may do what

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _must_write(self) -> None:
        if self._token == READ_ONLY_TOKEN:
            raise Refusal(403, "Forbidden", "You don't have the rights to write here")
        if self._token != TOKEN:
            raise Refusal(401, "Unauthorized", "Invalid credentials in Authorization header")

    def _repo(self, kind: str, repo: str) -> Repo:
        if self._token not in (None, TOKEN, READ_ONLY_TOKEN):
            raise Refusal(401, "Unauthorized", "Invalid credentials in Authorization header")
        found = self.hub.repos.get((kind.removesuffix("s") or "model", repo))
        if found is None or (found.private and self._token is None):
            raise Refusal(401 if self._token is None else 404, "RepoNotFound", "Repository not found")
        return found

    def _revision(self, repo: Repo, revision: str) -> tuple[str, dict[str, Blob]]:
        found = repo.at(revision)
        if found is None:
            raise Refusal(404, "RevisionNotFound", f"no revision {revision}")
        return found

    # Repositories

    def create(self, body: bytes, query: dict[str, Any]) -> None:
        self._must_write()
        wanted = json.loads(body)
        kind, repo_id = wanted.get("type") or "model", f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        repo = Repo(private=wanted.get("visibility", "private" if wanted.get("private") else "public") == "private")
        repo.add({".gitattributes": Blob(5, b"* lfs")})
        self.hub.repos[kind, repo_id] = repo
        return self._json({"url": url, "name": repo_id, "id": "1"})

    def info(self, body: bytes, query: dict[str, Any], kind: str, repo: str, revision: str = "main") -> None:
        found = self._repo(kind, repo)
        sha, files = self._revision(found, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        if query.get("blobs"):
            for sibling in siblings:
                blob = files[sibling["rfilename"]]
                sibling |= {"size": blob.size, "blobId": blob.git_oid, **({"lfs": blob.lfs} if blob.lfs else {})}
        self._json({"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, query: dict[str, Any], kind: str, repo: str, revision: str, folder: str = "") -> None:
        _, files = self._revision(self._repo(kind, repo), revision)
        entries = []
        for path, blob in sorted(files.items()):
            if path.startswith(folder.lstrip("/")):
                lfs = {"lfs": blob.lfs} if blob.lfs else {}
                entries.append({"type": "file", "path": path, "size": blob.size, "oid": blob.git_oid, **lfs})
        self._json(entries)

    def refs(self, body: bytes, query: dict[str, Any], kind: str, repo: str) -> None:
        found = self._repo(kind, repo)
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in found.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.commits[-1][0]}
        self._json({"branches": [main], "converts": [], "tags": tags})

    def tag(self, body: bytes, query: dict[str, Any], kind: str, repo: str, revision: str) -> None:
        self._must_write()
        found, name = self._repo(kind, repo), json.loads(body)["tag"]
        if name in found.tags:
            raise Refusal(409, "Conflict", "the tag is there")
        found.tags[name] = self._revision(found, revision)[0]
        self._json({})

    def validate_yaml(self, body: bytes, query: dict[str, Any]) -> None:
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        errors = [] if match and isinstance(yaml.safe_load(match[1]), dict) else [{"message": "no metadata"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    # Uploads

    def preupload(self, body: bytes, query: dict[str, Any], kind: str, repo: str, revision: str) -> None:
        self._must_write()
        _, files = self._revision(self._repo(kind, repo), revision)
        answers = []
        for wanted in json.loads(body)["files"]:
            old = files.get(wanted["path"])
            is_large = wanted["size"] > LFS_BYTES or wanted["path"].endswith(LFS_SUFFIXES)
            oid = None if old is None else (old.oid or old.git_oid)
            mode = "lfs" if is_large else "regular"
            answers.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def lfs_batch(self, body: bytes, query: dict[str, Any], kind: str, repo: str) -> None:
        self._must_write()
        self._repo(kind.rstrip("/") or "model", repo)
        objects = [self._upload_action(each["oid"], each["size"]) for each in json.loads(body)["objects"]]
        self._json({"transfer": "basic", "objects": objects})

    def _upload_action(self, oid: str, size: int) -> dict[str, Any]:
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if oid in self.hub.objects:
            return answer
        upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{oid}"}
        chunk = self.hub.chunk_bytes
        if chunk is not None and size > chunk:
            count = -(-size // chunk)
            parts = {f"{number:05d}": f"{self.hub.url}/lfs/{oid}/{number}" for number in range(1, count + 1)}
            upload = {"href": f"{self.hub.url}/lfs/{oid}/complete", "header": {"chunk_size": str(chunk), **parts}}
        verify = {"href": f"{self.hub.url}/lfs/{oid}/verify"}
        return {**answer, "actions": {"upload": upload, "verify": verify}}

    def lfs_put(self, body: bytes, query: dict[str, Any], oid: str) -> None:
        self._store(oid, body)
        self._answer(200)

    def lfs_part(self, body: bytes, query: dict[str, Any], oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = body
        self._answer(200, headers={"ETag": hashlib.md5(body).hexdigest()})

    def lfs_complete(self, body: bytes, query: dict[str, Any], oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        wanted = json.loads(body)["parts"]
        if [(n, hashlib.md5(parts[n]).hexdigest()) for n in sorted(parts)] != [
            (part["partNumber"], part["etag"]) for part in wanted
        ]:
            raise Refusal(400, "BadParts", "the parts are not those that came")
        self._store(oid, b"".join(parts[number] for number in sorted(parts)))
        self._json({})

    def lfs_verify(self, body: bytes, query: dict[str, Any], oid: str) -> None:
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise Refusal(400, "BadObject", "not the size that was announced")
        self._json({})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "BadObject", "the content has another sha256")
        self.hub.objects[oid] = content

    def commit(self, body: bytes, query: dict[str, Any], kind: str, repo: str, revision: str) -> None:
        self._must_write()
        found = self._repo(kind, repo)
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, found.commits[-1][0]):
            raise Refusal(412, "PreconditionFailed", "A commit has happened since")
        files = dict(found.commits[-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = Blob(len(content), content)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, "MissingObject", f"{value['path']} was never uploaded")
                files[value["path"]] = Blob(len(self.hub.objects[value["oid"]]), oid=value["oid"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.add(files)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    # Downloads

    def resolve(self, body: bytes, query: dict[str, Any], kind: str, repo: str, revision: str, path: str) -> None:
        sha, files = self._revision(self._repo(kind.rstrip("/") or "model", repo), revision)
        blob = files.get(path)
        headers = {"X-Repo-Commit": sha}
        if blob is None:
            return self._answer(404, headers={**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "no file"})
        if blob.oid is None:
            return self._send_content(blob.content, {**headers, "ETag": f'"{blob.git_oid}"'})
        linked = {
            "X-Linked-Size": str(blob.size),
            "X-Linked-ETag": f'"{blob.oid}"',
            "Location": f"{self.hub.cdn}/cdn/{blob.oid}",
        }
        return self._answer(302, headers={**headers, **linked})

    def cdn(self, body: bytes, query: dict[str, Any], oid: str) -> None:
        self._send_content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, content, {**headers, "Content-Length": str(len(content))})
        rest = content[int(wanted[1]) :]
        place = f"bytes {wanted[1]}-{len(content) - 1}/{len(content)}"
        return self._answer(206, rest, {**headers, "Content-Range": place, "Content-Length": str(len(rest))})


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
PLAIN = rf"/(?P<kind>(?:datasets/|spaces/)?){REPO}"
REVISION = r"(?P<revision>[^/]+)"
OID = r"/lfs/(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", API, _Handler.info),
    ("GET", rf"{API}/revision/{REVISION}", _Handler.info),
    ("GET", rf"{API}/tree/{REVISION}(?P<folder>(?:/.*)?)", _Handler.tree),
    ("GET", rf"{API}/refs", _Handler.refs),
    ("POST", rf"{API}/tag/{REVISION}", _Handler.tag),
    ("POST", rf"{API}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"{API}/commit/{REVISION}", _Handler.commit),
    ("POST", rf"{PLAIN}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", OID, _Handler.lfs_put),
    ("PUT", rf"{OID}/(?P<number>\d+)", _Handler.lfs_part),
    ("POST", rf"{OID}/complete", _Handler.lfs_complete),
    ("POST", rf"{OID}/verify", _Handler.lfs_verify),
    ("GET", rf"{PLAIN}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
    ("HEAD", rf"{PLAIN}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
    ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", _Handler.cdn),
    ("HEAD", r"/cdn/(?P<oid>[0-9a-f]{64})", _Handler.cdn),
]
