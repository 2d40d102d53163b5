"""A local HTTP endpoint that speaks as much of the Hugging Face hub's protocol as fetching a model takes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Done = subprocess.CompletedProcess[str]
TAGGED = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Repository:
    """Files by commit; `problem` is the code and hub error of every answer, `token` what a private one wants."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    problem: tuple[int, str] | None = None
    token: str = ""


@dataclass
class Endpoint:
    """Where it listens, what it has, and what it was asked: (method, path, bytes sent)."""

    url: str
    repositories: dict[str, Repository]
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def fetched(self) -> set[str]:
        """Names of the files whose content was sent."""
        return {path.rpartition("/")[2] for method, path, size in self.asked if method == "GET" and "/resolve/" in path}

    def sent(self) -> Counter[str]:
        """Bytes that were sent of each path."""
        total = Counter[str]()
        for _, path, size in self.asked:
            total[path] += size
        return total


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        status, headers, content = self._find(path)
        span = self.headers.get("Range")
        if span and status == 200:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            status, content = 206, content[int(first) : end]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
        self.endpoint.asked.append((self.command, path, len(content) if body else 0))

    def _find(self, path: str) -> tuple[int, dict[str, str], bytes]:
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name = next((name for name in ("/".join(parts[:2]), parts[0]) if name in self.endpoint.repositories), "")
        if name == parts[0]:
            # A repository without an organisation, like gpt2.
            parts = ["", *parts]
        repository = self.endpoint.repositories.get(name)
        if repository is None:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if repository.problem:
            status, code = repository.problem
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        revision = parts[3] if len(parts) > 3 else "main"
        commit = {"main": COMMIT, "v1": TAGGED}.get(revision, revision)
        files = repository.files.get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no revision"}, b"{}"
        headers = {"X-Repo-Commit": commit}
        if api and len(parts) > 2 and parts[2] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return 200, headers | {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if api:
            info = {
                "id": name, "modelId": name, "sha": commit, "private": False,
                "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in files],
            }  # fmt: skip
            return 200, headers | {"Content-Type": "application/json"}, json.dumps(info).encode()
        file = "/".join(parts[4:])
        if file not in files:
            return 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no file"}, b""
        etag = '"' + hashlib.sha1(files[file]).hexdigest() + '"'
        return 200, headers | {"ETag": etag, "Accept-Ranges": "bytes"}, files[file]


def run_rbe(endpoint: Endpoint, work: Path, home: Path, *arguments: str, **environment: str) -> Done:
    """Run rbe in a folder, with a cache of its own, against the endpoint."""
    asked = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint.url, "HF_HUB_OFFLINE": "0"} | environment
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    work.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "rbe_cli", *arguments], cwd=work, env=keep | asked,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Endpoint]:
    """Run the endpoint on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}", repositories)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"endpoint": endpoint})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
