"""The page in a real Chromium, before a real server whose answers are known."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from server.engine import Weights
from server.engine_scripted import ScriptedEngine
from tests.server.web import ask, complete, rate, web
from thumbwheel import pulse
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials
from thumbwheel.lease import Lease
from thumbwheel.pulse import Pulse
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import feedback_pb2, record_pb2
from thumbwheel_client.v1.record_pb2 import SCOPE_CHAT, SCOPE_RATE

playwright = pytest.importorskip("playwright.async_api", reason="needs the package playwright")
axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="needs the package axe-playwright-python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
expect = playwright.expect

PICTURES = os.environ.get("PAGE_PICTURES", "")
"""A folder for screenshots; empty: none are kept."""
HOSTILE = (
    '<img src=x onerror="window.hit=1"> </script><script>window.hit=2</script> [go](javascript:window.hit=3)'
    " [out](https://example.com/a) ![pic](https://example.com/p.png)\n\n```html\n<b onclick=hit()>\n```"
)
PLAIN = (
    "**Bicycle wheels** stay round because the *spokes pull*:\n\n1. Each spoke is under tension.\n2. The hub hangs from"
    " the upper ones.\n\n```python\nload = weight / spokes\n```\n\nSo a wheel with `32` spokes carries a rider easily."
)
THUMB, STARS = record_pb2.VOTE_KIND_THUMB, record_pb2.VOTE_KIND_STARS
RANKING, EDIT = record_pb2.VOTE_KIND_RANKING, record_pb2.VOTE_KIND_EDIT


def script(weights: Weights, prompt: str, index: int) -> str:
    question = prompt.rpartition("<user>")[2].partition("\n")[0]
    if question.startswith("hostile"):
        return HOSTILE
    if question.startswith("long"):
        return "on and " * 500
    return f"second {question}" if index else PLAIN if "wheel" in question else f"answer to {question}"


Publish = Callable[..., Awaitable[record_pb2.VersionRecord]]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


class Screen:
    """A page, and what it did that it should not."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda asked: asked.url.startswith(origin) or self.elsewhere.append(asked.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: "Content Security" in line.text and self.errors.append(line.text))

    async def ask(self, question: str, button: str = "Good answer") -> None:
        await self.page.get_by_label("Your question").fill(question)
        await self.page.keyboard.press("Enter")
        await expect(self.page.get_by_role("button", name=button).last).to_be_visible()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True).last

    async def barriers(self) -> list[str]:
        """What axe calls serious or critical on the page as it is now, with the elements."""
        found = (await axe.Axe().run(self.page)).response["violations"]
        return [
            f"{each['id']}: {node['html']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(path=Path(PICTURES) / f"{name}.png")


@asynccontextmanager
async def opened(browser: Any, server: Any, **context: Any) -> AsyncIterator[Screen]:
    origin = f"http://{server.addresses.web}"
    options = {"viewport": {"width": 1000, "height": 760}} | context
    window = await browser.new_context(**options)
    page = await window.new_page()
    page.set_default_timeout(8000)
    screen = Screen(page, origin)
    await page.goto(f"{origin}/")
    try:
        yield screen
        assert screen.elsewhere == [], "nothing is asked of another host"
        assert screen.errors == []
    finally:
        await window.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(max_context=20_000, script=script)


@pytest.fixture
async def server(settings: Callable[..., Config], run_server: Any, engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with run_server(settings(), engine) as running:
        yield running


async def votes(server: Any) -> list[record_pb2.VoteEvent]:
    listed = await server.feedback.ListVotes(feedback_pb2.ListVotesRequest())
    return [vote.event for vote in listed.votes]


async def eventually(server: Any, right: Callable[[list[record_pb2.VoteEvent]], bool]) -> record_pb2.VoteEvent | None:
    """Waits until the current votes are as they should be; returns the last."""
    found: list[record_pb2.VoteEvent] = []
    async with asyncio.timeout(8):
        while not right(found := await votes(server)):  # noqa: ASYNC110 - the page tells nobody
            await asyncio.sleep(0.02)
    return found[-1] if found else None


async def test_votes_of_every_kind_arrive_and_are_there_after_a_reload(server: Any, browser: Any) -> None:
    async with opened(browser, server) as screen:
        page = screen.page
        await screen.ask("one")
        await expect(page.locator(".answer .text")).to_have_text("answer to one")
        await expect(page.locator(".answer .version")).to_have_text("by base")
        await screen.button("Good answer").click()
        await eventually(server, lambda found: [vote.thumb for vote in found] == [record_pb2.THUMB_UP])
        await screen.button("Bad answer").click()  # flips
        await eventually(server, lambda found: [vote.thumb for vote in found] == [record_pb2.THUMB_DOWN])
        await screen.button("Too long").click()
        await page.get_by_label("More about it").fill("it rambles")
        await screen.button("Send comment").click()
        down = await eventually(server, lambda found: bool(found and found[-1].comment))
        assert down is not None
        assert (down.thumb, list(down.reasons), down.comment) == (record_pb2.THUMB_DOWN, ["too long"], "it rambles")
        await screen.button("4 stars").click()
        await eventually(server, lambda found: {vote.kind for vote in found} == {THUMB, STARS})
        await screen.button("Correct").click()
        await page.get_by_label("What the answer should have been").fill("a better one")
        await screen.button("Save").click()
        edit = await eventually(server, lambda found: {vote.kind for vote in found} == {THUMB, STARS, EDIT})
        assert edit is not None
        assert edit.edit == "a better one"
        await page.reload()
        await expect(page.locator(".answer .text")).to_contain_text("a better one")
        await expect(screen.button("Bad answer")).to_have_attribute("aria-pressed", "true")
        await expect(screen.button("4 stars")).to_have_attribute("aria-pressed", "true")
        await screen.button("Bad answer").click()  # takes it back
        await screen.button("4 stars").click()
        await screen.button("Corrected").click()
        await screen.button("Take it back").click()
        await eventually(server, lambda found: not found)
        await expect(page.locator(".answer .text")).to_have_text("answer to one")
        await screen.ask("two")
        await expect(screen.button("Answer again")).to_have_count(1)


async def test_two_answers_side_by_side_and_a_pick(server: Any, browser: Any, engine: ScriptedEngine) -> None:
    async with opened(browser, server) as screen:
        await screen.ask("one")
        await screen.button("Answer again").click()
        await expect(screen.page.locator(".pair .answer")).to_have_count(2)
        await screen.button("Answer 2").click()
        ranked = await eventually(server, lambda found: [vote.kind for vote in found] == [RANKING])
        assert ranked is not None
        places = {item.response_id[-2:]: item.rank for item in ranked.ranking.items}
        assert places == {"-0": 2, "-1": 1}
        await expect(screen.page.locator(".answer.picked .text")).to_have_text("second one")
        prompts: list[str] = []
        engine.script = lambda weights, prompt, index: prompts.append(prompt) or "noted"  # type: ignore[func-returns-value]
        await screen.ask("two")
        assert "<assistant>second one" in prompts[0], "the conversation goes on from the better one"
        await screen.button("Equally good").click()
        tied = await eventually(server, lambda found: bool(found) and all(i.rank == 1 for i in found[0].ranking.items))
        assert tied is not None
        await screen.button("Equally good").click()
        await eventually(server, lambda found: not found)


async def test_stop_ends_the_tokens_and_what_was_seen_can_be_rated(
    server: Any, browser: Any, engine: ScriptedEngine, until: Callable[..., Awaitable[None]]
) -> None:
    engine._token_seconds = 0.005
    async with opened(browser, server) as screen:
        await screen.page.get_by_label("Your question").fill("long")
        await screen.page.keyboard.press("Enter")
        await expect(screen.page.locator(".answer.running .text")).to_contain_text("on and on")
        await screen.button("Stop").click()
        await until(lambda: not engine.running)
        await expect(screen.page.locator(".answer.stopped")).to_contain_text("Stopped.")
        await expect(screen.page.get_by_label("Your question")).to_be_focused()
        await screen.button("Good answer").click()
        await eventually(server, lambda found: [vote.thumb for vote in found] == [record_pb2.THUMB_UP])


async def test_script_in_questions_and_answers_is_text(server: Any, browser: Any) -> None:
    async with opened(browser, server) as screen:
        await screen.ask(f"hostile {HOSTILE.splitlines()[0]}")
        page = screen.page
        await expect(page.locator(".answer .text")).to_contain_text('<img src=x onerror="window.hit=1">')
        await expect(page.locator(".asked")).to_contain_text("</script><script>window.hit=2</script>")
        await expect(page.locator(".answer pre code")).to_have_text("<b onclick=hit()>")
        assert await page.locator(".turn :is(img, script, iframe, b[onclick])").count() == 0
        links = page.locator(".answer .text a")
        hrefs = [await link.get_attribute("href") for link in await links.all()]
        assert hrefs == ["https://example.com/a", "https://example.com/p.png"]
        assert await links.first.get_attribute("rel") == "noopener noreferrer nofollow"
        assert await page.evaluate("window.hit") is None
        await page.reload()
        await expect(page.locator(".answer")).to_be_visible()
        assert await page.evaluate("window.hit") is None


async def test_by_keyboard_alone_and_with_names_for_everything(server: Any, browser: Any) -> None:
    async with opened(browser, server) as screen:
        page = screen.page

        async def tab_to(name: str) -> None:
            for _ in range(40):
                await page.keyboard.press("Tab")
                at = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
                if await page.evaluate(at) == name:
                    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline == "solid", f"one does not see that {name} has the focus"
                    return
            raise AssertionError(f"no way to {name} by Tab")

        await tab_to("Skip to the question")
        await page.keyboard.press("Enter")
        await page.keyboard.type("one")
        await page.keyboard.press("Enter")
        await expect(page.locator("#said")).to_have_text("Answer: answer to one")
        await expect(page.get_by_label("Your question")).to_be_focused()
        await page.evaluate("document.activeElement.blur(); window.getSelection().setPosition(document.body, 0)")
        await tab_to("Bad answer")
        await page.keyboard.press("Space")
        await eventually(server, lambda found: [vote.thumb for vote in found] == [record_pb2.THUMB_DOWN])
        await tab_to("Wrong")
        await page.keyboard.press("Space")
        await tab_to("More about it")
        await page.keyboard.press("Escape")
        await expect(screen.button("Bad answer")).to_be_focused()
        unnamed = await page.evaluate(
            """[...document.querySelectorAll("button, a, input, textarea, summary, svg[role=img]")]
            .filter((it) => it.checkVisibility())
            .filter((it) => !(it.ariaLabel || it.textContent.trim() || it.labels?.length)).map((it) => it.outerHTML)"""
        )
        assert unnamed == []
        small = await page.evaluate(
            """[...document.querySelectorAll("button, textarea, nav a")].filter((it) => it.offsetParent)
            .map((it) => [it.outerHTML, it.getBoundingClientRect()])
            .filter(([, box]) => box.width < 44 || box.height < 44).map(([html]) => html)"""
        )
        assert small == []
        await expect(page.get_by_role("banner")).to_have_count(1)
        await expect(page.get_by_role("main")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_in_either_scheme(server: Any, browser: Any, scheme: str) -> None:
    phone = {"viewport": {"width": 360, "height": 720}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    async with opened(browser, server, **phone) as screen:
        page = screen.page
        await screen.ask("Why does a wheel stay round? " + "x" * 120)
        await screen.button("Bad answer").click()
        await expect(page.get_by_label("More about it")).to_be_visible()
        if scheme == "dark":
            await screen.picture("page-phone-dark")
        wide = "document.documentElement.scrollWidth"
        assert await page.evaluate(wide) == 360
        contrast = await page.evaluate(CONTRAST)
        assert contrast == [], f"text that is hard to read: {contrast}"
        await screen.button("Answer again").click()
        await expect(screen.button("Equally good")).to_be_visible()
        assert await page.evaluate(wide) == 360
        await page.get_by_role("link", name="The wheel").click()
        await expect(page.locator("#wheel-live")).to_contain_text("base")
        assert await page.evaluate(wide) == 360
        assert await page.evaluate(CONTRAST) == []


CONTRAST = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = parts(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.offsetParent || node.closest(":disabled, .unseen")) continue;
    const [one, other] = [light(parts(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
    if (ratio < 4.5) found.push(`${node.className || node.tagName} ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


async def said(client: httpx.AsyncClient, count: int, good: Callable[[int], bool]) -> None:
    """People ask and rate, one after the other."""
    for place in range(count):
        answer = await complete(client, ask())
        await rate(client, response_id=answer["id"], thumb="up" if good(place) else "down")


async def test_the_wheel_turns_and_operators_move_it(
    settings: Callable[..., Config],
    run_server: Any,
    publish: Publish,
    browser: Any,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hours_ago = itertools.count(time.time() - 7400, 90)  # so that the votes of seconds spread as those of hours
    monkeypatch.setattr("server.vote_input.now", lambda: Timestamp(seconds=int(next(hours_ago))))
    config = settings()
    await publish(config, "v1.5-6abc34")
    store = await Store.open(config.redis.url, config.redis.namespace)
    await pulse.beat(store, Pulse("training", 0.4, time.time() - 300, 64))
    await store.close()
    async with run_server(config, engine) as server, web(server) as client, opened(browser, server) as screen:
        page = screen.page
        await screen.ask("Why does a wheel stay round?")
        await screen.button("Good answer").click()
        await screen.button("4 stars").click()
        await screen.picture("page-light")
        await said(client, 38, lambda place: place % 5 < 2)
        await page.get_by_role("link", name="The wheel").click()
        await expect(page.locator("#wheel-title")).to_be_focused()
        await expect(page.locator("#wheel-learner")).to_contain_text("Trains")
        await expect(page.locator("#wheel-learner progress")).to_have_attribute("value", "0.4")
        await expect(page.locator("#wheel-live")).to_contain_text("45 % good of 40")
        await screen.button("Promote v1.5-6abc34").click()
        await page.get_by_label("Why, for the record").fill("looks good")
        await screen.button("Promote").click()
        await expect(page.locator("#wheel-live .big")).to_have_text("v1.5-6abc34")
        await expect(page.locator("#live-name")).to_have_text("v1.5-6abc34")
        await said(client, 40, lambda place: place % 5 != 3)
        await expect(page.locator("#wheel-live")).to_contain_text("80 % good of 40")
        await expect(page.get_by_role("img", name="v1.5-6abc34 80 % of 40")).to_be_visible()
        await screen.button("Roll back v1.5-6abc34").click()
        await screen.button("Roll back").click()
        await expect(page.locator("#wheel-live .big")).to_have_text("base")


async def commit(config: Config, cycle: record_pb2.CycleRecord, release: str | None) -> None:
    """Ends a cycle over all votes that wait, as the learner does."""
    store = await Store.open(config.redis.url, config.redis.namespace)
    lease = Lease(store, "learner", 60)
    assert await lease.acquire()
    registry, votes = Registry(store), VoteStream(store)
    name, live = f"cycle-{await registry.committed() + 1}", await registry.live()
    ended = record_pb2.CycleRecord(batch=await votes.freeze(lease, name, live.name, 1, 1000))
    ended.MergeFrom(cycle)
    await registry.commit_cycle(lease, ended, release)
    await lease.release()
    await store.close()


RELEASED = record_pb2.CycleRecord(
    outcome="released",
    version="v1.5-6abc34",
    reasons=["win rate 71 % of 32"],
    metrics={
        "reward_model_auc": 0.684, "kl_nats_per_sequence": 1.8, "win_rate": 0.71, "competence": 0.583, "seconds": 484,
        "votes": 12, "entropy": float("nan"),
    },
)  # fmt: skip


async def test_cycles_that_were_committed_are_the_last_cycles(
    settings: Callable[..., Config], run_server: Any, publish: Publish, browser: Any, engine: ScriptedEngine
) -> None:
    config = settings()
    async with run_server(config, engine) as server, web(server) as client, opened(browser, server) as screen:
        page = screen.page
        await page.get_by_role("link", name="The wheel").click()
        cycles = page.locator("#wheel-cycles li")
        await expect(cycles).to_have_text(["None yet."])
        await said(client, 12, lambda place: place % 3 == 0)
        await publish(config, "v1.5-6abc34")
        await commit(config, RELEASED, "v1.5-6abc34")
        await expect(cycles).to_have_count(1)
        await expect(cycles.locator(".title")).to_have_text("cycle-1 → v1.5-6abc34released")
        await expect(cycles).to_contain_text("12 votes on base · ")
        await expect(cycles).to_contain_text("AUC 0.68 · KL 1.80 · win rate 71 % · competence 58 % · took 8 minutes")
        await expect(cycles.locator(".note")).to_have_text("win rate 71 % of 32")
        await expect(page.locator("#wheel-live .big")).to_have_text("v1.5-6abc34")
        await said(client, 3, lambda place: True)
        below = record_pb2.CycleRecord(outcome="reward_model_below_floor", reasons=["AUC 0.48 is below 0.55"])
        await commit(config, below, None)
        await expect(cycles).to_have_count(2)
        await expect(cycles.first.locator(".title")).to_have_text("cycle-2reward model below floor")
        await expect(cycles.first).to_contain_text("3 votes on v1.5-6abc34 · ")
        await expect(cycles.first.locator(".note")).to_have_text("AUC 0.48 is below 0.55")
        await expect(page.locator("#wheel-live .big")).to_have_text("v1.5-6abc34")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_barrier(
    settings: Callable[..., Config],
    run_server: Any,
    publish: Publish,
    browser: Any,
    engine: ScriptedEngine,
    scheme: str,
) -> None:
    config = settings()
    await publish(config, "v1.5-6abc34")
    dressed = {"color_scheme": scheme}
    async with (
        run_server(config, engine) as server,
        web(server) as client,
        opened(browser, server, **dressed) as screen,
    ):
        page = screen.page
        assert await screen.barriers() == []
        await screen.ask("Why does a wheel stay round?")
        await screen.button("Bad answer").click()
        await screen.button("4 stars").click()
        await screen.button("Too long").click()
        await screen.button("Correct").click()
        await expect(page.get_by_label("What the answer should have been")).to_be_visible()
        assert await screen.barriers() == []
        await screen.button("Answer again").click()
        await screen.button("Answer 2").click()
        await expect(page.locator(".answer.picked")).to_be_visible()
        assert await screen.barriers() == []
        await said(client, 12, lambda place: place % 3 == 0)
        await commit(config, RELEASED, "v1.5-6abc34")
        await said(client, 6, lambda place: True)
        await page.get_by_role("link", name="The wheel").click()
        await expect(page.locator("#wheel-cycles .state")).to_have_text("released")
        assert await screen.barriers() == []
        await screen.button("Promote base").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await screen.barriers() == []
        # It finds one where there is one.
        await page.evaluate("document.querySelector('#move-reason').labels[0].remove()")
        assert any(found.startswith("label: ") for found in await screen.barriers())


async def test_a_key_is_asked_for_kept_in_the_tab_and_opens_what_it_opens(
    settings: Callable[..., Config], run_server: Any, redis_url: str, browser: Any, engine: ScriptedEngine
) -> None:
    config = settings()
    security = config.security.model_copy(update={"auth": "keys", "web_admin": True})
    store = await Store.open(redis_url, "default")
    key, _ = await Credentials(store).make("ada", [SCOPE_CHAT, SCOPE_RATE])
    await store.close()
    config = config.model_copy(update={"security": security})
    async with run_server(config, engine) as server, opened(browser, server) as screen:
        page = screen.page
        await page.get_by_label("Key", exact=True).fill("tw_wrong")
        await screen.button("Use it").click()
        await expect(page.locator("#key-trouble")).to_be_visible()
        await page.get_by_label("Key", exact=True).fill(key)
        await screen.button("Use it").click()
        await expect(page.locator("#live-name")).to_have_text("base")
        await page.reload()
        await screen.ask("one")
        await page.get_by_role("link", name="The wheel").click()
        await expect(page.locator("#wheel-trouble")).to_contain_text("scope admin")
