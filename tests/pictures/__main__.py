"""``python -m tests.pictures FOLDER``: the README's pictures, of a thumbwheel that has turned once.

Twenty minutes on two cores. It needs Chromium, and Debian's Prometheus, which it fetches.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from cli import instance
from cli.instance import Instance
from tests.deploy.prometheus_process import plain, prometheus
from tests.pictures import panels
from tests.pictures.terminal import Terminal
from tests.processes import eventually

RATINGS = 144
SETTINGS = {
    "LEARNER__MIN_VOTES": str(RATINGS),
    # Nobody chats while the learner is at work here.
    "SERVER__ROLLOUT_SEQUENCES_BUSY": "96",
}


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thumbwheel-") as name:
        folder = Path(name)
        environment = dict(os.environ) | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": name}
        environment |= {f"THUMBWHEEL_{key}": value for key, value in SETTINGS.items()}
        terminal = Terminal(target / "session.cast", folder, environment)
        try:
            asyncio.run(take(terminal, folder, environment, target))
        finally:
            terminal.close()


async def take(terminal: Terminal, folder: Path, environment: dict[str, str], target: Path) -> None:
    async with running(folder, environment) as here:
        began = time.time()
        async with prometheus(folder, plain([here.http], [here.learner_http])) as watcher:
            await asyncio.to_thread(visit, terminal, 1)
            await eventually((folder / "data" / "reports" / "cycle-1.html").is_file, 1800)
            await asyncio.to_thread(visit, terminal, 2)
            await asyncio.to_thread(terminal.type, "thumbwheel versions", r"base[^$]*\$ $", 20)
            drawn = await asyncio.to_thread(panels.page, watcher, began)
        await shoot(here, folder, drawn, target)


def visit(terminal: Terminal, seed: int) -> None:
    """A question, a thumb, and people with a taste."""
    terminal.type("thumbwheel chat --temperature 0", "you › $", 20)
    terminal.type("What is the capital of France?", "you › $", 60)
    terminal.type("+", "you › $", 10)
    terminal.type("/quit", r"\$ $", 10)
    terminal.type(f"thumbwheel simulate --taste brief --ratings {RATINGS} --seed {seed}", r"rated up[^$]*\$ $", 900)


@asynccontextmanager
async def running(folder: Path, environment: dict[str, str]) -> AsyncIterator[Instance]:
    with (folder / "up.log").open("wb") as log:
        up = await asyncio.create_subprocess_exec(
            "thumbwheel", "up", cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        await eventually(lambda: up.returncode is not None or instance.find(folder / "data"), 300)
        here = instance.find(folder / "data")
        assert here is not None, (folder / "up.log").read_text(encoding="utf-8")
        yield here
    finally:
        if up.returncode is None:
            up.terminate()
        await up.wait()


async def shoot(here: Instance, folder: Path, drawn: str, target: Path) -> None:
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = await browser.new_page(viewport={"width": 1000, "height": 760})
        await page.goto(f"http://{here.web}/")
        await page.get_by_role("link", name="The wheel").click()
        await page.get_by_role("img", name=_live(here)).wait_for()
        await page.screenshot(path=target / "wheel.png")
        page = await browser.new_page(viewport={"width": 1354, "height": 200})
        await page.set_content(drawn)
        await page.screenshot(path=target / "panels.png", full_page=True)
        await page.set_viewport_size({"width": 1000, "height": 1400})
        await page.goto((folder / "data" / "reports" / "cycle-1.html").as_uri())
        await page.screenshot(path=target / "report.png")
        await page.screenshot(path=target / "report-whole.png", full_page=True)
        await browser.close()


def _live(here: Instance) -> str:
    with urllib.request.urlopen(f"http://{here.web}/v1/wheel", timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
    return str(found["live"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
