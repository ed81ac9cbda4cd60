"""A hub of our own: as much of Hugging Face's HTTP interface as its client needs to fetch a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMITS = ("a" * 40, "b" * 40)


class Hub(ThreadingHTTPServer):
    """Hands out `models`, OWNER/NAME to a folder; `cut` ends every transfer of weights half way."""

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.revision = 0
        """Which of COMMITS is the main one."""
        self.gated: set[str] = set()
        self.cut = False
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub(models: dict[str, Path]) -> Iterator[Hub]:
    with Hub(models) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if name not in self.server.models or name in self.server.gated:
            gated = name in self.server.gated
            code = {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"}
            self._send(403 if gated else 401, b"{}", code, body)
            return
        folder, rest = self.server.models[name], path.partition(name)[2]
        if path.startswith("/api/models/"):
            self._send(
                200,
                json.dumps(self._tree(folder) if rest.startswith("/tree/") else self._info(name)).encode(),
                {},
                body,
            )
            return
        commit, _, file = rest.removeprefix("/resolve/").partition("/")
        content = (folder / file).read_bytes()
        sent = content[: len(content) // 2] if self.server.cut and body and file.endswith(".safetensors") else content
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit, "Content-Length": str(len(content))}
        self._send(200, sent, headers, body)
        self.close_connection = len(sent) < len(content)

    def _info(self, name: str) -> dict[str, str]:
        return {"id": name, "sha": COMMITS[self.server.revision]}

    def _tree(self, folder: Path) -> list[dict[str, str | int]]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file.read_bytes())}
            for file in sorted(folder.iterdir())
            if file.is_file()
        ]

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()  # as git names files
