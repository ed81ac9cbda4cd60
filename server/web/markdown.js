// Markdown as a tree of elements. What is no Markdown stays text, markup too; nothing is ever parsed as HTML.
// Known: headings, paragraphs, lists, quotes, rules, code in blocks and lines, bold, italic, links to http and https.

import { element } from "./element.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+/;
const DEEPEST = 8;
const INLINE = /`+|\*\*|\*|__|_|!?\[|https?:\/\//g;

/** @returns {DocumentFragment} */
export function markdown(text) {
  const whole = document.createDocumentFragment();
  whole.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return whole;
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) {
      at++;
    } else if ((match = FENCE.exec(line))) {
      const [, fence, language] = match;
      const begin = ++at;
      while (at < lines.length && !closes(lines[at], fence)) at++;
      found.push(codeBlock(lines.slice(begin, at).join("\n"), language));
      at++;
    } else if ((match = HEADING.exec(line))) {
      // Below the page's own headings, which end at the third level.
      found.push(element(`h${Math.min(6, match[1].length + 3)}`, {}, ...inline(match[2], 0)));
      at++;
    } else if (RULE.test(line)) {
      found.push(element("hr"));
      at++;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      const begin = at;
      while (at < lines.length && QUOTE.test(lines[at])) at++;
      const inner = lines.slice(begin, at).map((each) => each.replace(QUOTE, ""));
      found.push(element("blockquote", {}, ...blocks(inner, depth + 1)));
    } else if (ITEM.test(line) && depth < DEEPEST) {
      at = list(lines, at, depth, found);
    } else {
      const begin = at++;
      while (at < lines.length && continues(lines[at])) at++;
      found.push(element("p", {}, ...paragraph(lines.slice(begin, at))));
    }
  }
  return found;
}

const closes = (line, fence) => line.trim().length >= fence.length && !line.trim().replaceAll(fence[0], "");

const continues = (line) =>
  line.trim() && ![FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));

function paragraph(lines) {
  return lines.flatMap((line, index) => [...(index ? [element("br")] : []), ...inline(line.trim(), 0)]);
}

function codeBlock(text, language) {
  const code = element("code", {}, text);
  return element("pre", { tabindex: 0, role: "group", "aria-label": language ? `Code, ${language}` : "Code" }, code);
}

/** Reads one list from line `at` on, and returns the line after it. */
function list(lines, at, depth, found) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const kind = ordered ? "ol" : "ul";
  const items = [];
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length !== indent.length || /\d/.test(match[2]) !== ordered) break;
    const inner = [lines[at].slice(match[0].length)];
    at++;
    for (; at < lines.length; at++) {
      const line = lines[at];
      const deeper = line.length - line.trimStart().length > indent.length;
      const gap = !line.trim() && /^\s+\S/.test(lines[at + 1] ?? "") && !sibling(lines[at + 1], indent);
      if (!gap && !(line.trim() && (deeper || continues(line)) && !sibling(line, indent))) break;
      inner.push(line.slice(Math.min(match[0].length, line.length - line.trimStart().length)));
    }
    items.push(element("li", {}, ...tight(blocks(inner, depth + 1))));
    // One empty line between items does not end the list.
    if (!lines[at]?.trim() && sibling(lines[at + 1] ?? "", indent)) at++;
  }
  const start = ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {};
  found.push(element(kind, start, ...items));
  return at;
}

function sibling(line, indent) {
  const match = ITEM.exec(line);
  return match !== null && match[1].length === indent.length;
}

/** An item of one paragraph needs no paragraph. */
function tight(children) {
  return children.length && children[0].tagName === "P" ? [...children[0].childNodes, ...children.slice(1)] : children;
}

function inline(text, depth) {
  const found = [];
  let plain = 0;
  let at = 0;
  const keep = (until) => { if (until > plain) found.push(document.createTextNode(text.slice(plain, until))); };
  while (depth < DEEPEST) {
    INLINE.lastIndex = at;
    const match = INLINE.exec(text);
    if (!match) break;
    const piece = piecesAt(text, match.index, match[0], depth);
    if (piece) {
      keep(match.index);
      found.push(piece.node);
      at = plain = piece.end;
    } else {
      at = match.index + match[0].length;
    }
  }
  keep(text.length);
  return found;
}

function piecesAt(text, index, mark, depth) {
  const begin = index + mark.length;
  if (mark[0] === "`") return code(text, begin, mark);
  if (mark.endsWith("[")) return link(text, index, begin, depth);
  if (mark.startsWith("http")) return address(text, index);
  return emphasis(text, index, begin, mark, depth);
}

function code(text, begin, ticks) {
  for (let end = text.indexOf(ticks, begin); end >= 0; end = text.indexOf(ticks, end + 1)) {
    if (text[end + ticks.length] === "`" || text[end - 1] === "`") continue;
    const inner = text.slice(begin, end);
    return { node: element("code", {}, inner.trim() ? inner.trim() : inner), end: end + ticks.length };
  }
  return null;
}

function emphasis(text, index, begin, mark, depth) {
  const inWord = /\w/;
  // An underscore within a word is one of its letters.
  if (!text[begin] || /\s/.test(text[begin]) || (mark[0] === "_" && inWord.test(text[index - 1] ?? ""))) return null;
  for (let end = text.indexOf(mark, begin + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    const after = text[end + mark.length] ?? "";
    const double = mark.length === 1 && (after === mark || text[end - 1] === mark);
    if (double || /\s/.test(text[end - 1]) || (mark[0] === "_" && inWord.test(after))) continue;
    const tag = mark.length === 2 ? "strong" : "em";
    return { node: element(tag, {}, ...inline(text.slice(begin, end), depth + 1)), end: end + mark.length };
  }
  return null;
}

/** `[words](address)`. A picture becomes a link: the page loads nothing from elsewhere. */
function link(text, index, begin, depth) {
  const middle = text.indexOf("](", begin);
  const end = middle < 0 ? -1 : text.indexOf(")", middle);
  if (end < 0) return null;
  const href = safe(text.slice(middle + 2, end).trim().split(/\s/)[0].replace(/^<|>$/g, ""));
  if (!href) return null;
  const words = text.slice(begin, middle);
  return { node: anchor(href, ...(words ? inline(words, depth + DEEPEST) : [href])), end: end + 1 };
}

function address(text, index) {
  if (/\w/.test(text[index - 1] ?? "")) return null;
  const found = /^https?:\/\/[^\s<>"'`]+/.exec(text.slice(index));
  const shown = found?.[0].replace(/[.,;:!?)\]}*_]+$/, "");
  const href = shown && safe(shown);
  return href ? { node: anchor(href, shown), end: index + shown.length } : null;
}

/** The address, if it leads to a site and nowhere else. */
function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function anchor(href, ...words) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...words);
}
