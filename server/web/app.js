// The page: which view is shown, which version is live, and the key where one is asked for.

import { get, keepKey, keptKey, whenKeyIsNeeded } from "./api.js";
import { Chat } from "./chat.js";
import { byId, show } from "./element.js";
import { Wheel } from "./wheel.js";

const LIVE_MS = 15_000;

const wheel = new Wheel(showLive);

function showLive(version) {
  byId("live").hidden = !version;
  byId("live-name").textContent = version;
}

async function askLive() {
  if (document.hidden || !wheel.hidden) return;
  try {
    showLive((await get("/v1/models/thumbwheel")).thumbwheel.version);
  } catch {
    showLive(""); // whatever is asked for next says what is wrong
  }
}

function view() {
  const turning = location.hash === "#wheel";
  byId("chat").hidden = turning;
  byId("wheel").hidden = !turning;
  for (const [link, on] of [["to-chat", !turning], ["to-wheel", turning]]) {
    if (on) byId(link).setAttribute("aria-current", "page");
    else byId(link).removeAttribute("aria-current");
  }
  document.title = turning ? "The wheel · thumbwheel" : "thumbwheel";
  document.querySelector(".skip").hash = turning ? "#wheel-title" : "#question";
  wheel.watch(turning);
}

function askKey() {
  const dialog = byId("key-dialog");
  byId("open-key").hidden = false;
  if (dialog.open) return;
  show(byId("key-trouble"), keptKey() ? "The server does not take the key that it was given." : "");
  byId("key").value = "";
  dialog.showModal();
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key-dialog").close();
  await askLive();
  wheel.look();
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("open-key").addEventListener("click", askKey);
byId("open-key").hidden = !keptKey();
whenKeyIsNeeded(askKey);

addEventListener("hashchange", () => {
  if (!["", "#chat", "#wheel"].includes(location.hash)) return; // a place within the page
  view();
  scrollTo(0, location.hash === "#wheel" ? 0 : document.body.scrollHeight);
  (location.hash === "#wheel" ? byId("wheel-title") : byId("question")).focus();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) askLive(); });
new Chat(showLive);
view();
askLive();
setInterval(askLive, LIVE_MS);
