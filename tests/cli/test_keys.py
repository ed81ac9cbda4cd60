"""`thumbwheel keys`, and a whole thumbwheel behind TLS and keys."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli import instance
from learner.rollouts import Rollouts
from thumbwheel.config import Client
from thumbwheel.credentials import KeyChecker
from thumbwheel.errors import NotAuthenticated
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import SCOPE_CHAT, SCOPE_RATE

if TYPE_CHECKING:
    from tests.cli.conftest import Done, Thumbwheel


async def keys(thumbwheel: Thumbwheel, url: str, *words: str) -> Done:
    return await thumbwheel("keys", *words, "--set", f"redis.url={url}")


async def test_a_key_is_made_shown_once_listed_and_revoked(thumbwheel: Thumbwheel, redis_url: str) -> None:
    made = await keys(
        thumbwheel, redis_url, "add", "ada", "--scope", "chat", "--scope", "rate", "--tenant", "acme", "--days", "30",
        "--tokens-per-minute", "500",
    )  # fmt: skip
    assert made.code == 0, made.err
    key = made.out.strip()
    store = await Store.open(redis_url, "default")
    record = await KeyChecker(store).check(key)
    assert (record.user, record.tenant, list(record.scopes)) == ("ada", "acme", [SCOPE_CHAT, SCOPE_RATE])
    assert record.limits.tokens_per_minute == 500
    listed = await keys(thumbwheel, redis_url, "list")
    for word in (record.key_id, "ada", "acme", "chat rate", "tokens_per_minute 500", "until"):
        assert word in listed.out
    assert key.rpartition("_")[2] not in listed.out
    assert "revoked" in (await keys(thumbwheel, redis_url, "revoke", record.key_id)).out
    assert "revoked" in (await keys(thumbwheel, redis_url, "list")).out
    with pytest.raises(NotAuthenticated):
        await KeyChecker(store).check(key)
    await store.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "ada"), "--scope"),
        (("add", "ada", "--scope", "everything"), "everything"),
        (("add", "", "--scope", "chat"), "user"),
        (("revoke", "nobody"), "no key 'nobody'"),
    ],
)
async def test_what_cannot_be_done_is_said(
    thumbwheel: Thumbwheel, redis_url: str, words: tuple[str, ...], said: str
) -> None:
    done = await keys(thumbwheel, redis_url, *words)
    assert done.code != 0
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def closed(tmp_path: Path, tiny_model: Path, certificates: Any) -> Iterator[tuple[Path, Any]]:
    """A `thumbwheel up` on every address of this machine, behind mutual TLS and keys; its folder and certificate."""
    one = certificates("one")
    sets = (
        "server.host=0.0.0.0", "learner.http_host=0.0.0.0", "security.auth=keys", f"client.ca={one.ca}",
        f"security.tls_certificate={one.chain}", f"security.tls_key={one.key}", f"security.tls_client_ca={one.ca}",
        f"client.certificate={one.chain}", f"client.private_key={one.key}", f"model.path={tiny_model}",
        "server.grpc_port=0", "server.admin_port=0", "server.http_port=0", "server.web_port=0", "learner.http_port=0",
        "server.threads=1", "learner.threads=1", "server.kv_cache_bytes=67108864", "server.max_sequences=4",
    )  # fmt: skip
    folder = tmp_path / "data"
    words = [word for item in sets for word in ("--set", item)]
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", "up", "--data-dir", str(folder), *words],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    deadline = time.monotonic() + 150
    while instance.find(folder) is None:
        assert process.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < deadline, "up did not get ready"
        time.sleep(0.1)
    yield folder, one
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


async def test_all_of_it_behind_tls_and_keys(closed: tuple[Path, Any], thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    folder, certificate = closed
    here = instance.find(folder)
    assert here is not None
    for secret in ("secrets/operator.key", "secrets/learner.key", "instance.json"):
        assert (folder / secret).stat().st_mode & 0o077 == 0

    # On this machine the commands find what they need.
    chatted = await thumbwheel("chat", "--data-dir", str(folder), "--max-tokens", "4", typed="hi\n+\n")
    assert (chatted.code, chatted.err) == (0, "")
    assert "rated" in chatted.out
    versions = await thumbwheel("versions", "--data-dir", str(folder))
    assert "base" in versions.out, versions.err
    exported = await thumbwheel("export", "--data-dir", str(folder))
    assert len(exported.out.splitlines()) == 1, exported.err
    examined = await thumbwheel("doctor", "--data-dir", str(folder))
    assert "server         answers" in examined.out, examined.out

    # Elsewhere they are told in a file; without the key, or with another, the door stays shut.
    address = here.grpc
    (tmp_path / "thumbwheel.toml").write_text(
        f'[client]\nca = "{certificate.ca}"\ncertificate = "{certificate.chain}"\nprivate_key = "{certificate.key}"\n'
    )
    nobody = await thumbwheel("chat", "--server", address, typed="hi\n")
    assert nobody.code == 1
    assert "client.key_file" in nobody.err
    shutil.copy(folder / "secrets" / "learner.key", tmp_path / "key")
    with (tmp_path / "thumbwheel.toml").open("a") as file:
        file.write(f'key_file = "{tmp_path / "key"}"\n')
    learner = await thumbwheel("chat", "--server", address, typed="hi\n")
    assert "'chat'" in learner.err
    (tmp_path / "key").chmod(0o644)
    assert "chmod 600" in (await thumbwheel("chat", "--server", address, typed="hi\n")).err

    # The learner gets its rollouts with its own key, and nobody sees the metrics without one.
    client = Client(**here.client, key_file=str(folder / "secrets" / "learner.key"))
    async with Rollouts(here.admin, client) as rollouts:
        assert len(await rollouts.sample("base", [[5, 6, 7]], max_tokens=2, seed=1)) == 1
    operator = (folder / "secrets" / "operator.key").read_text().strip()
    for page in (here.http, here.learner_http):
        url = f"https://{page}/metrics"
        assert await asyncio.to_thread(get, url, certificate.ca, "") == 401
        assert await asyncio.to_thread(get, url, certificate.ca, f"Bearer {operator}") == 200

    # No secret is in a log, on the screen, or in a command line.
    for secret in (operator, (folder / "secrets" / "learner.key").read_text().strip()):
        for written in [*(folder / "logs").glob("*"), tmp_path / "out"]:
            assert secret.rpartition("_")[2] not in written.read_text()
        assert secret.encode() not in command_lines()


def command_lines() -> bytes:
    """Of every process on this machine."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(line.read_bytes())
    return b"".join(found)


def get(url: str, ca: str, authorization: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=ca)) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
