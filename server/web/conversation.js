// The conversation in this tab: kept on reload, and gone when the tab is closed.
//
// turn: { question, attempts }         attempt: { turnId, answers, pick }
// answer: { id, version, text, state, trouble, thumb, stars, edit }
//
// `state` is "running", "done", "stopped" or "failed". `thumb` is { value, reasons, comment }, `pick` the place of the better
// answer or "tie"; all votes are null until they are cast.

const PLACE = "thumbwheel.conversation";

export class Conversation {
  constructor() {
    this.turns = restored();
    for (const answer of this.#answers()) {
      if (answer.state === "running") answer.state = "stopped";
    }
    addEventListener("pagehide", () => this.keep());
  }

  keep() {
    try {
      sessionStorage.setItem(PLACE, JSON.stringify(this.turns));
    } catch {
      // Full: what is said stays on the page, and votes are at the server in any case.
    }
  }

  clear() {
    this.turns = [];
    this.keep();
  }

  get last() { return this.turns.at(-1); }

  /** What is sent for an answer to turn `until`: everything before it, as it was answered, picked or corrected. */
  messagesFor(until) {
    const messages = [];
    for (const turn of this.turns) {
      const said = turn === until ? null : spoken(chosen(turn));
      if (turn !== until && !said) continue;
      messages.push({ role: "user", content: turn.question });
      if (turn === until) break;
      messages.push({ role: "assistant", content: said });
    }
    return messages;
  }

  *#answers() {
    for (const turn of this.turns) for (const attempt of turn.attempts) yield* attempt.answers;
  }
}

export function newAttempt(n) {
  const answers = Array.from({ length: n }, () => ({
    id: "", version: "", text: "", state: "running", trouble: "", thumb: null, stars: null, edit: null,
  }));
  return { turnId: "", answers, pick: null };
}

const chosen = (turn) => {
  const { answers, pick } = turn.attempts.at(-1);
  return answers[Number.isInteger(pick) ? pick : 0];
};

const spoken = (answer) => (answer.edit ?? answer.text).trim();

function restored() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(PLACE));
    return Array.isArray(turns) ? turns : [];
  } catch {
    return [];
  }
}
