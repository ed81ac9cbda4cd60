// What can be said of a finished answer: thumb, why it was not good, stars, and what it should have been.

import { Ballot } from "./ballot.js";
import { announce, drawing, element, show } from "./element.js";

const REASONS = ["Wrong", "Incomplete", "Not what I asked", "Too long", "Too short", "Unclear", "Harmful"];
const MOST_COMMENT = 2000; // characters that the server takes

/**
 * @param {object} answer as in conversation.js; its votes are kept there
 * @param {{keep: () => void, corrected: () => void, again: (() => void)|null}} hooks
 * @returns {HTMLElement}
 */
export function feedback(answer, hooks) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const editor = element("div", { class: "editor" });
  const thumbs = thumbButtons(answer, hooks, trouble);
  const correct = correction(answer, hooks, trouble, editor);
  const again = hooks.again && element("button", { type: "button", class: "again", onclick: hooks.again }, "Answer again");
  const bar = element("div", { class: "bar", role: "group", "aria-label": "Rate this answer" },
    ...thumbs.buttons, starButtons(answer, hooks, trouble), correct, again);
  return element("div", { class: "feedback" }, bar, thumbs.why, editor, trouble);
}

/** A ballot for one kind of vote on `answer`, whose value is kept there. */
function ballot(kind, answer, hooks, trouble, body, shown, words) {
  return new Ballot(
    answer[kind],
    (value) => ({ response_id: answer.id, ...body(value) }),
    { response_id: answer.id, kind },
    (value, error) => {
      answer[kind] = value;
      hooks.keep();
      shown(value);
      show(trouble, error ? `That was not kept: ${error.message}` : "");
      if (!error) announce(words(value));
    },
  );
}

function thumbButtons(answer, hooks, trouble) {
  const up = thumbButton("Good answer", "up");
  const down = thumbButton("Bad answer", "down");
  const why = element("div", { class: "why", hidden: true });
  const votes = ballot("thumb", answer, hooks, trouble,
    ({ value, reasons, comment }) => ({ thumb: value, reasons, comment }), shown,
    (vote) => (vote ? `Rated ${vote.value === "up" ? "good" : "bad"}` : "Rating taken back"));
  let open = false;

  function shown(vote) {
    up.setAttribute("aria-pressed", String(vote?.value === "up"));
    down.setAttribute("aria-pressed", String(vote?.value === "down"));
    const wanted = open && vote?.value === "down";
    if (wanted && why.hidden) why.replaceChildren(...reasons(votes, () => close()));
    const opens = wanted && why.hidden;
    why.hidden = !wanted;
    if (opens) why.scrollIntoView({ block: "nearest" });
  }
  function close() {
    open = false;
    shown(votes.value);
    down.focus();
  }
  function press(value) {
    open = value === "down";
    votes.cast(votes.value?.value === value ? null : { value, reasons: [], comment: "" });
  }
  up.addEventListener("click", () => press("up"));
  down.addEventListener("click", () => press("down"));
  shown(votes.value);
  return { buttons: [up, down], why };
}

/** Asked after a thumb down, and not waited for: the thumb itself counts already. */
function reasons(votes, close) {
  const chips = REASONS.map((reason) => {
    const label = reason.toLowerCase();
    const chip = element("button", { type: "button", class: "chip", "aria-pressed": "false" }, reason);
    chip.addEventListener("click", () => {
      const given = votes.value.reasons;
      const now = given.includes(label) ? given.filter((each) => each !== label) : [...given, label];
      chip.setAttribute("aria-pressed", String(now.includes(label)));
      votes.cast({ ...votes.value, reasons: now });
    });
    return chip;
  });
  const comment = element("textarea", { rows: 2, maxlength: MOST_COMMENT, placeholder: "More about it, if you like", "aria-label": "More about it" });
  const form = element("form", { class: "comment" }, comment,
    element("div", { class: "choices" },
      element("button", { type: "submit" }, "Send comment"),
      element("button", { type: "button", class: "plain", onclick: close }, "Close")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    votes.cast({ ...votes.value, comment: comment.value.trim() });
    close();
  });
  form.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  return [element("p", {}, "What was wrong? Say it or leave it; your vote counts already."),
    element("div", { class: "chips", role: "group", "aria-label": "What was wrong" }, ...chips), form];
}

function starButtons(answer, hooks, trouble) {
  const buttons = [1, 2, 3, 4, 5].map((count) =>
    element("button", {
      type: "button", class: "star", "aria-label": count === 1 ? "1 star" : `${count} stars`,
      onclick: () => votes.cast(votes.value === count ? null : count),
    }, star()));
  const shown = (value) => buttons.forEach((button, index) => {
    button.setAttribute("aria-pressed", String(value === index + 1));
    button.classList.toggle("lit", value !== null && index < value);
  });
  const votes = ballot("stars", answer, hooks, trouble, (stars) => ({ stars }), shown,
    (value) => (value === null ? "Stars taken back" : `${value} of 5 stars`));
  shown(votes.value);
  return element("span", { class: "stars", role: "group", "aria-label": "Stars" }, ...buttons);
}

/** The button that opens an editor on the answer; what is saved there is the vote. */
function correction(answer, hooks, trouble, place) {
  const button = element("button", { type: "button", class: "correct", "aria-expanded": "false" }, "Correct");
  const votes = ballot("edit", answer, hooks, trouble, (edit) => ({ edit }),
    (value) => {
      button.textContent = value === null ? "Correct" : "Corrected";
      button.classList.toggle("on", value !== null);
      hooks.corrected();
    },
    (value) => (value === null ? "Correction taken back" : "Correction kept"));
  button.textContent = answer.edit === null ? "Correct" : "Corrected";
  button.classList.toggle("on", answer.edit !== null);

  function close() {
    place.replaceChildren();
    button.setAttribute("aria-expanded", "false");
    button.focus();
  }
  function open() {
    const text = element("textarea", { rows: 6, "aria-label": "What the answer should have been" });
    text.value = votes.value ?? answer.text;
    const back = votes.value !== null && element("button", {
      type: "button", onclick: () => { votes.cast(null); close(); },
    }, "Take it back");
    const form = element("form", {}, text, element("div", { class: "choices" },
      element("button", { type: "submit", class: "main" }, "Save"),
      element("button", { type: "button", onclick: close }, "Cancel"), back || null));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const edit = text.value.trim();
      if (edit && edit !== answer.text.trim()) votes.cast(edit);
      close();
    });
    form.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
    place.replaceChildren(form);
    button.setAttribute("aria-expanded", "true");
    text.focus();
  }
  button.addEventListener("click", () => (place.hasChildNodes() ? close() : open()));
  return button;
}

/**
 * Which of an attempt's answers is better. Pressing again takes it back.
 *
 * @param {{keep: () => void, picked: () => void}} hooks
 */
export function pick(attempt, hooks) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const names = attempt.answers.map((_, index) => `Answer ${index + 1}`);
  const values = [...attempt.answers.keys(), "tie"];
  const ids = attempt.answers.map((answer) => answer.id);
  const votes = new Ballot(attempt.pick,
    (value) => ({ ranking: value === "tie" ? [ids] : [ids[value], ids.filter((_, index) => index !== value)] }),
    { turn_id: attempt.turnId, kind: "ranking" },
    (value, error) => {
      attempt.pick = value;
      hooks.keep();
      shown(value);
      show(trouble, error ? `That was not kept: ${error.message}` : "");
      if (!error) announce(value === null ? "Choice taken back" : value === "tie" ? "Equally good" : `${names[value]} is better`);
    });
  const buttons = values.map((value) => element("button", {
    type: "button", class: "chip", onclick: () => votes.cast(votes.value === value ? null : value),
  }, value === "tie" ? "Equally good" : names[value]));
  function shown(value) {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(values[index] === value)));
    hooks.picked();
  }
  shown(votes.value);
  return element("div", { class: "pick", role: "group", "aria-label": "Which answer is better?" },
    element("span", {}, "Which is better?"), ...buttons, trouble);
}

function thumbButton(label, direction) {
  const turned = direction === "down" ? { transform: "rotate(180 12 12)" } : {};
  return element("button", { type: "button", class: "thumb", "aria-label": label, title: label },
    drawing("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
      drawing("path", { ...turned, d: "M8 11l4-8c1.7 0 2.8 1.2 2.5 2.9L14 9.5h4.8c1.3 0 2.2 1.2 2 2.4l-1.2 6.6c-.2.9-1 1.5-1.9 1.5H8zM3.5 11H8v9H3.5z" })));
}

const star = () => drawing("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
  drawing("path", { d: "M12 3.2l2.7 5.6 6.1.8-4.5 4.3 1.1 6.1L12 17l-5.4 3 1.1-6.1L3.2 9.6l6.1-.8z" }));
