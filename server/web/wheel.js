// The wheel: which version is live, what people say of each, what the learner does, and the moves of operators.

import { get, post } from "./api.js";
import { columns, moment, percent, rates, span } from "./chart.js";
import { announce, byId, element, show } from "./element.js";

const LOOK_MS = 3000;
const STAGES = {
  waiting: "Waits for votes",
  frozen: "Frozen: a tripwire has tripped",
  collecting: "Collects the votes",
  reward_model: "Fits the reward model",
  training: "Trains",
  gate: "Examines the candidate",
  committing: "Commits the cycle",
};
const FIGURES = {
  reward_model_auc: ["AUC", (value) => value.toFixed(2)],
  kl_nats_per_sequence: ["KL", (value) => value.toFixed(2)],
  win_rate: ["win rate", percent],
  competence: ["competence", percent],
  seconds: ["took", span],
};
const PROMOTABLE = ["candidate", "canary", "retired", "rolled_back"];
const words = (name) => name.replaceAll("_", " ");

export class Wheel {
  /** @param {(version: string) => void} heard told which version is live */
  constructor(heard) {
    this.#heard = heard;
    byId("move-form").addEventListener("submit", (event) => { event.preventDefault(); this.#move(); });
    byId("move-cancel").addEventListener("click", () => byId("move-dialog").close());
    addEventListener("resize", () => { this.#shown.delete("charts"); if (!this.hidden) this.#draw(); });
  }

  hidden = true;
  #heard;
  #timer = null;
  #seen = null;
  #shown = new Map();
  #meant = null;

  /** Looks again and again, while somebody does. */
  watch(on) {
    this.hidden = !on;
    clearInterval(this.#timer);
    if (!on) return;
    this.#timer = setInterval(() => { if (!document.hidden) this.look(); }, LOOK_MS);
    this.look();
  }

  async look() {
    if (this.hidden) return;
    try {
      this.#seen = await get("/v1/wheel");
      show(byId("wheel-trouble"), "");
    } catch (error) {
      show(byId("wheel-trouble"), {
        403: "Only operators see the wheel: this needs a key with the scope admin.",
        404: "This server shows the wheel on its admin port only (security.web_admin).",
      }[error.status] ?? error.message);
      return;
    }
    byId("wheel-body").hidden = false;
    this.#heard(this.#seen.live);
    this.#draw();
  }

  #draw() {
    const seen = this.#seen;
    if (!seen) return;
    this.#part("live", [seen.live, seen.canary, seen.versions], () => this.#live(seen));
    this.#part("learner", [seen.learner, seen.frozen, seen.votes.waiting, Math.floor(seen.now / 60)], () => learner(seen));
    this.#part("charts", seen.votes, () => {
      rates(byId("wheel-rates"), seen.votes.buckets, seen.votes.seconds);
      columns(byId("wheel-votes"), seen.votes.buckets, seen.votes.seconds);
    });
    this.#part("versions", [seen.live, seen.versions], () => {
      byId("wheel-versions").replaceChildren(...seen.versions.map((version) => this.#version(version, seen.live)));
    });
    this.#part("cycles", seen.cycles, () => {
      byId("wheel-cycles").replaceChildren(...(seen.cycles.length ? seen.cycles.map(cycle)
        : [element("li", { class: "note" }, "None yet.")]));
    });
  }

  /** Draws what has changed since; whoever had the focus there keeps it. */
  #part(name, facts, draw) {
    const now = JSON.stringify(facts);
    if (this.#shown.get(name) === now) return;
    this.#shown.set(name, now);
    const focused = document.activeElement?.dataset?.move;
    draw();
    if (focused && document.activeElement === document.body) {
      document.querySelector(`[data-move="${CSS.escape(focused)}"]`)?.focus();
    }
  }

  #live(seen) {
    const live = seen.versions.find((version) => version.name === seen.live);
    byId("wheel-live").replaceChildren(
      element("p", { class: "big" }, seen.live),
      element("p", {}, live ? opinion(live) : ""),
      seen.canary ? element("p", {}, "On trial: ", element("b", {}, seen.canary)) : "",
      element("div", { class: "choices" },
        seen.live === "base" ? null : this.#button("Roll back", "rollback", seen.live),
        seen.canary ? this.#button(`Take ${seen.canary} back`, "rollback", seen.canary) : null));
  }

  #version(version, live) {
    const reasons = version.reasons.length ? element("p", { class: "note" }, version.reasons.join("; ")) : null;
    const promotes = version.name !== live && (PROMOTABLE.includes(version.state) || version.name === "base");
    return element("li", { class: version.name === live ? "row now" : "row" },
      element("p", { class: "title" }, element("b", {}, version.name),
        element("span", { class: `state ${version.state}` }, words(version.state))),
      element("p", {}, [opinion(version), version.parent && `from ${version.parent}`, moment(version.created)].filter(Boolean).join(" · ")),
      figures(version), reasons,
      promotes ? this.#button("Promote", "promote", version.name) : null);
  }

  #button(label, verb, name) {
    return element("button", {
      type: "button", "data-move": `${verb} ${name} ${label}`, "aria-label": label.includes(name) ? label : `${label} ${name}`,
      onclick: () => this.#ask(verb, name),
    }, label);
  }

  #ask(verb, name) {
    this.#meant = { verb, name };
    const promotes = verb === "promote";
    byId("move-title").textContent = promotes ? `Promote ${name}?` : `Take ${name} back?`;
    byId("move-words").textContent = promotes
      ? "Everybody's next answer comes from it. Answers that run end as they began."
      : "The version before it answers at once. Answers that run end as they began.";
    byId("move-do").textContent = promotes ? "Promote" : "Roll back";
    byId("move-reason").value = "";
    show(byId("move-trouble"), "");
    byId("move-dialog").showModal();
  }

  async #move() {
    const { verb, name } = this.#meant;
    const button = byId("move-do");
    button.disabled = true;
    try {
      const moved = await post(`/v1/models/${encodeURIComponent(name)}/${verb}`, { reason: byId("move-reason").value.trim() });
      byId("move-dialog").close();
      announce(`${moved.live} is live`);
      await this.look();
    } catch (error) {
      show(byId("move-trouble"), error.message);
    } finally {
      button.disabled = false;
    }
  }
}

function learner({ learner: at, frozen, votes, now }) {
  const missing = element("p", {}, "No learner is running.");
  const parts = at ? [
    element("p", { class: "big" }, STAGES[at.stage] ?? words(at.stage)),
    at.stage === "waiting"
      ? bar(votes.waiting, at.min_votes, `${votes.waiting} of the ${at.min_votes} votes that start a cycle`)
      : bar(at.progress, 1, `${percent(at.progress)} of this stage, for ${span(Math.max(60, now - at.since))}`),
  ] : [missing, element("p", {}, `Votes that wait: ${votes.waiting}`)];
  byId("wheel-learner").replaceChildren(...parts,
    ...frozen.map(({ wire, words: why }) => element("p", { class: "trouble" }, `${words(wire)}: ${why}`)));
}

function bar(value, most, label) {
  return element("p", {}, element("progress", { value: Math.min(value, most), max: most, "aria-label": label }), label);
}

function cycle(record) {
  const made = record.version ? `${record.cycle} → ${record.version}` : record.cycle;
  return element("li", { class: "row" },
    element("p", { class: "title" }, element("b", {}, made), element("span", { class: `state ${record.outcome}` }, words(record.outcome))),
    element("p", {}, `${record.votes} votes on ${record.parent} · ${moment(record.finished)}`),
    figures(record),
    record.reasons.length ? element("p", { class: "note" }, record.reasons.join("; ")) : null);
}

function figures({ figures: found }) {
  const shown = Object.entries(FIGURES).filter(([name]) => name in found)
    .map(([name, [label, form]]) => `${label} ${form(found[name])}`);
  return shown.length ? element("p", {}, shown.join(" · ")) : null;
}

function opinion({ good, judged }) {
  if (!judged) return "no votes yet";
  const [low, high] = wilson(good, judged);
  return `${percent(good / judged)} good of ${judged} (95 %: ${Math.round(low * 100)}–${Math.round(high * 100)} %)`;
}

/** The interval that holds the true share in 95 of 100 cases (Wilson 1927). */
function wilson(good, all) {
  const z = 1.96;
  const share = good / all;
  const middle = share + (z * z) / (2 * all);
  const half = z * Math.sqrt((share * (1 - share)) / all + (z * z) / (4 * all * all));
  const scale = 1 + (z * z) / all;
  return [(middle - half) / scale, (middle + half) / scale];
}
