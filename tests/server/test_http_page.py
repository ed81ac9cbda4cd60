"""The page's files: what is sent with them, and that nothing else can be had."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import http_page
from tests.server.web import connection, error, web

FOLDER = Path(http_page.__file__).parent / "web"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.name != http_page.INDEX)


@pytest.fixture
async def client(server: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with web(server) as client:
        yield client


async def test_every_file_comes_with_its_type_and_the_policy(client: httpx.AsyncClient) -> None:
    for path, name in (("/", http_page.INDEX), *((f"/{name}", name) for name in FILES)):
        response = await client.get(path)
        assert (response.status_code, response.content) == (200, (FOLDER / name).read_bytes())
        assert response.headers["content-type"] == http_page.TYPES[name.rpartition(".")[2]]
        assert {name: response.headers[name] for name in http_page.HEADERS} == http_page.HEADERS
        assert "access-control-allow-origin" not in response.headers
    for part in ("default-src 'none'", "script-src 'self'", "form-action 'none'", "frame-ancestors 'none'"):
        assert part in http_page.POLICY.split("; ")
    assert "unsafe" not in http_page.POLICY


async def test_what_is_known_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/app.js")
    again = await client.get("/app.js", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert again.headers["content-security-policy"] == http_page.POLICY
    assert (await client.get("/style.css", headers={"if-none-match": first.headers["etag"]})).status_code == 200
    head = await client.head("/app.js")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(first.content)))


@pytest.mark.parametrize(
    "path",
    ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/web/app.js", "/index.html", "/.app.js", "/app.js/", "//app.js"],
)
async def test_nothing_else_can_be_had(server: Any, path: str) -> None:
    async with connection(server) as (reader, writer):  # a client would tidy the path
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"404", b"307"), head
    assert b"import" not in body


async def test_only_by_names_of_this_machine_and_without_a_body(client: httpx.AsyncClient) -> None:
    assert error(await client.get("/", headers={"host": "evil.example"}), 403)
    refused = await client.request("GET", "/", content=b"x" * 10)
    assert error(refused, 413)
    assert refused.headers["connection"] == "close"
    assert error(await client.post("/", json={}), 405)


def test_nothing_of_the_page_leads_elsewhere() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""["'(]\s*(https?:)?//\w""", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    index = (FOLDER / http_page.INDEX).read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|style=|<style|<script(?! type=\"module\" src=)", index)
