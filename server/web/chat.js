// The chat: questions, answers as they come, and what can be said of them.

import { ApiError, chat } from "./api.js";
import { Conversation, newAttempt } from "./conversation.js";
import { announce, byId, element, show } from "./element.js";
import { feedback, pick } from "./feedback.js";
import { markdown } from "./markdown.js";

const NEAR = 120; // pixels from the end, within which the page follows what comes

export class Chat {
  /** @param {(version: string) => void} heard told which version answered */
  constructor(heard) {
    this.#heard = heard;
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    this.#question.addEventListener("keydown", (event) => this.#onKey(event));
    this.#question.addEventListener("input", () => this.#grow());
    byId("stop").addEventListener("click", () => this.#stop());
    byId("new").addEventListener("click", () => this.#clear());
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.#stop(); });
    this.#render();
  }

  #heard;
  #conversation = new Conversation();
  #question = byId("question");
  #turns = byId("turns");
  #running = null;

  #onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#submit();
    }
  }

  #grow() {
    this.#question.rows = Math.min(8, this.#question.value.split("\n").length);
  }

  async #submit() {
    const question = this.#question.value.trim();
    if (!question || this.#running) return;
    const turn = { question, attempts: [] };
    const before = this.#conversation.last;
    this.#conversation.turns.push(turn);
    this.#question.value = "";
    this.#grow();
    if (before) this.#redraw(before); // only the last turn can be answered again
    this.#welcome();
    await this.#answer(turn, 1);
  }

  /** Asks for the answers of one attempt, and shows them as they come. */
  async #answer(turn, n) {
    const attempt = newAttempt(n);
    turn.attempts.push(attempt);
    const messages = this.#conversation.messagesFor(turn);
    this.#run(new AbortController());
    const views = this.#redraw(turn);
    this.#follow(true);
    announce("Answering");
    try {
      for await (const chunk of chat(messages, n, this.#running.signal)) this.#take(attempt, views, chunk);
    } catch (error) {
      const failed = error instanceof ApiError;
      if (!failed && error.name !== "AbortError") throw error;
      for (const answer of attempt.answers.filter((each) => each.state === "running")) {
        answer.state = failed ? "failed" : "stopped";
        answer.trouble = failed ? error.message : "";
      }
    } finally {
      const near = this.#near();
      this.#run(null);
      this.#conversation.keep();
      this.#redraw(turn);
      this.#follow(near);
      this.#tell(attempt);
    }
  }

  #take(attempt, views, chunk) {
    const near = this.#near();
    for (const choice of chunk.choices) {
      const answer = attempt.answers[choice.index];
      answer.id = choice.response_id;
      answer.text += choice.delta.content ?? "";
      if (chunk.thumbwheel) {
        attempt.turnId = chunk.thumbwheel.turn_id;
        answer.version = chunk.thumbwheel.version;
      }
      if (choice.finish_reason) {
        answer.state = "done";
        answer.trouble = choice.finish_reason === "length" ? "It ends here because it has reached its longest length." : "";
        if (!chunk.thumbwheel.logged) {
          answer.id = "";
          answer.trouble = "The store is away, so this answer cannot be rated.";
        }
        this.#heard(answer.version);
      }
      views[choice.index].changed();
    }
    this.#follow(near);
  }

  #tell(attempt) {
    const words = attempt.answers.map((answer, index) => {
      const name = attempt.answers.length > 1 ? `Answer ${index + 1}` : "Answer";
      const end = { stopped: " Stopped.", failed: ` ${answer.trouble}` }[answer.state] ?? "";
      return `${name}: ${answer.text}${end}`;
    });
    announce(words.join("\n"));
  }

  #run(running) {
    const focused = document.activeElement === byId(running ? "send" : "stop");
    this.#running = running;
    byId("send").hidden = running !== null;
    byId("stop").hidden = running === null;
    byId("new").disabled = running !== null;
    if (focused) this.#question.focus();
  }

  #stop() {
    this.#running?.abort();
  }

  #clear() {
    this.#conversation.clear();
    this.#render();
    this.#question.focus();
    announce("New chat");
  }

  #render() {
    this.#turns.replaceChildren();
    for (const turn of this.#conversation.turns) this.#redraw(turn);
    this.#welcome();
    this.#follow(true);
  }

  #welcome() {
    byId("welcome").hidden = this.#conversation.turns.length > 0;
  }

  /** Draws a turn anew; returns the views of its newest answers. */
  #redraw(turn) {
    const place = this.#conversation.turns.indexOf(turn);
    const { node, views } = this.#turn(turn);
    const shown = this.#turns.children[place];
    if (shown) shown.replaceWith(node);
    else this.#turns.append(node);
    return views;
  }

  #turn(turn) {
    const drawn = turn.attempts.map((attempt, index) =>
      this.#attempt(turn, attempt, index === turn.attempts.length - 1));
    const newest = drawn.pop();
    const earlier = drawn.length > 0 && element("details", { class: "earlier" },
      element("summary", {}, drawn.length === 1 ? "Earlier answer" : `${drawn.length} earlier answers`),
      ...drawn.map(({ node }) => node));
    const asked = element("article", { class: "asked", "aria-label": "You" }, turn.question);
    const node = element("li", { class: "turn" }, asked, earlier || null, newest?.node ?? null);
    return { node, views: newest?.views ?? [] };
  }

  #attempt(turn, attempt, newest) {
    const pair = attempt.answers.length > 1;
    const hooks = {
      keep: () => this.#conversation.keep(),
      again: newest && turn === this.#conversation.last ? () => this.#again(turn) : null,
    };
    const views = attempt.answers.map((answer, index) =>
      new AnswerView(answer, pair ? `Answer ${index + 1}` : "Answer", { ...hooks, again: pair ? null : hooks.again }));
    const node = element("div", { class: "attempt" },
      element("div", { class: pair ? "pair" : "single" }, ...views.map((view) => view.node)));
    const over = attempt.answers.every((answer) => answer.state !== "running");
    if (pair && over && attempt.answers.every((answer) => answer.id && answer.text)) {
      const picked = () => views.forEach((view, index) => view.node.classList.toggle("picked", attempt.pick === index));
      node.append(pick(attempt, { ...hooks, picked }));
    }
    const failed = attempt.answers.some((answer) => answer.state === "failed");
    if (over && hooks.again && (pair || failed)) {
      const words = failed ? "Try again" : "Answer again";
      node.append(element("button", { type: "button", class: "again", onclick: hooks.again }, words));
    }
    return { node, views };
  }

  /** Two new answers side by side; after a failure the one that was asked for. */
  async #again(turn) {
    if (this.#running) return;
    const last = turn.attempts.at(-1);
    const nothing = last.answers.every((answer) => !answer.text);
    if (nothing) turn.attempts.pop();
    this.#question.focus();
    await this.#answer(turn, nothing ? last.answers.length : 2);
  }

  #near() {
    const page = document.scrollingElement;
    return page.scrollHeight - page.scrollTop - page.clientHeight < NEAR;
  }

  #follow(near) {
    if (near && !byId("chat").hidden) document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  }
}

/** One answer. While it runs, what has come is drawn once a frame. */
class AnswerView {
  constructor(answer, label, hooks) {
    this.#answer = answer;
    this.#text = element("div", { class: "text" });
    this.#version = element("span", { class: "version" });
    const running = answer.state === "running";
    const trouble = element("p", { class: answer.state === "failed" ? "trouble" : "note" });
    show(trouble, answer.state === "stopped" ? "Stopped." : answer.trouble);
    this.node = element("article", { class: `answer ${answer.state}`, "aria-label": label, "aria-busy": String(running) },
      element("p", { class: "head" }, element("span", {}, label), this.#version), this.#text, trouble);
    this.#draw();
    if (!running && answer.id && answer.text) {
      this.node.append(feedback(answer, { ...hooks, corrected: () => this.#draw() }));
    }
  }

  #answer;
  #text;
  #version;
  #waiting = false;

  changed() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => { this.#waiting = false; this.#draw(); });
  }

  #draw() {
    const { edit, text, version } = this.#answer;
    this.#version.textContent = version && `by ${version}`;
    this.#text.replaceChildren(markdown(edit ?? text));
    if (edit !== null) this.#text.append(element("p", { class: "note" }, "Your correction."));
  }
}
