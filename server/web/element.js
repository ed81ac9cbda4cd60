// Elements, built from the outside in. Nothing here takes markup: a text is a text, whoever wrote it.

/**
 * @param {string} tag
 * @param {Object<string, any>} [facts] `on...` are listeners, `class`, `hidden` and the like attributes; null and false are left out
 * @param {...(Node|string|null)} children
 * @returns {HTMLElement}
 */
export function element(tag, facts = {}, ...children) {
  return fill(document.createElement(tag), facts, children);
}

/** The same for a drawing. */
export function drawing(tag, facts = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), facts, children);
}

function fill(node, facts, children) {
  for (const [name, value] of Object.entries(facts)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Says something to those who listen to the page instead of looking at it. */
export function announce(words) {
  const said = byId("said");
  said.textContent = "";
  // A text that stays the same is not said again, so it goes first.
  setTimeout(() => { said.textContent = words; }, 50);
}

/** Shows a text, or nothing where there is none. */
export function show(node, words) {
  node.textContent = words;
  node.hidden = !words;
}
