// Two drawings over one axis of time: what share of votes is good, by version, and how many votes came.

import { drawing, element } from "./element.js";

const HEIGHT = 190;
const LEFT = 48;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 26;

/** One line for each version: the share of votes that call its answers good. */
export function rates(place, buckets, seconds) {
  const judged = buckets.filter(({ good, bad }) => good + bad > 0);
  if (!judged.length) return nothing(place, "No votes that say good or bad yet.");
  const { across, frame, width } = axes(place, buckets, seconds, [0, 0.5, 1], (value) => `${value * 100} %`, 1);
  const versions = [...new Set(judged.map(({ version }) => version))];
  const lines = versions.map((version, index) => {
    const points = judged.filter((each) => each.version === version).map(({ start, good, bad }) => ({
      x: across(start + seconds / 2), y: down(good / (good + bad), 1), votes: good + bad, share: good / (good + bad), start,
    }));
    const path = points.map(({ x, y }) => `${x},${y}`).join(" ");
    const end = points.at(-1);
    const right = end.x > width - 110;
    return drawing("g", { class: `series s${index % 6}` },
      drawing("polyline", { points: path }),
      ...points.map(({ x, y, votes, share, start }) => drawing("circle", { cx: x, cy: y, r: Math.min(8, 2.5 + Math.sqrt(votes) / 2) },
        drawing("title", {}, `${version || "unknown"}, ${moment(start)}: ${percent(share)} of ${votes}`))),
      drawing("text", { x: right ? end.x - 10 : end.x + 10, y: end.y < 30 ? end.y + 18 : end.y - 9, "text-anchor": right ? "end" : "start" },
        version || "unknown"));
  });
  const words = versions.map((version) => {
    const own = judged.filter((each) => each.version === version);
    const good = own.reduce((sum, each) => sum + each.good, 0);
    const all = own.reduce((sum, each) => sum + each.good + each.bad, 0);
    return `${version || "unknown"} ${percent(good / all)} of ${all}`;
  });
  put(place, [...frame, ...lines], width, `Share of good votes over time. ${words.join(", ")}.`);
}

/** One column for each span of time. */
export function columns(place, buckets, seconds) {
  if (!buckets.length) return nothing(place, "No votes yet.");
  const spans = new Map();
  for (const { start, good, bad, other } of buckets) {
    const sum = spans.get(start) ?? { good: 0, bad: 0, other: 0 };
    spans.set(start, { good: sum.good + good, bad: sum.bad + bad, other: sum.other + other });
  }
  const total = ({ good, bad, other }) => good + bad + other;
  const most = Math.max(...[...spans.values()].map(total));
  const ticks = most > 1 ? [0, Math.round(most / 2), most] : [0, 1];
  const { across, frame, width } = axes(place, buckets, seconds, [...new Set(ticks)], String, most);
  const bars = [...spans].map(([start, counts]) => {
    let base = 0;
    const x = across(start) + 1;
    const wide = Math.max(2, across(start + seconds) - across(start) - 2);
    const parts = ["good", "bad", "other"].map((kind) => {
      const from = base;
      base += counts[kind];
      return drawing("rect", { class: kind, x, width: wide, y: down(base, most), height: down(from, most) - down(base, most) });
    });
    return drawing("g", {}, drawing("title", {},
      `${moment(start)}: ${counts.good} good, ${counts.bad} bad, ${counts.other} other`), ...parts);
  });
  const all = [...spans.values()].reduce((sum, each) => sum + total(each), 0);
  put(place, [...frame, ...bars], width, `${all} votes over time, at most ${most} in ${span(seconds)}.`);
  place.append(element("p", { class: "legend" },
    ...[["good", "good"], ["bad", "bad"], ["other", "rankings and corrections"]].map(([kind, words]) =>
      element("span", { class: `key ${kind}` }, words)),
    element("span", {}, `each column ${span(seconds)}`)));
}

function axes(place, buckets, seconds, ticks, words, most) {
  const width = Math.max(280, place.clientWidth || 640);
  const first = Math.min(...buckets.map(({ start }) => start));
  const last = Math.max(...buckets.map(({ start }) => start)) + seconds;
  // A few columns do not become walls.
  const end = Math.max(last, first + 12 * seconds);
  const across = (time) => LEFT + ((time - first) / (end - first)) * (width - LEFT - RIGHT);
  const levels = ticks.flatMap((tick) => [
    drawing("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: down(tick, most), y2: down(tick, most) }),
    drawing("text", { x: LEFT - 6, y: down(tick, most) + 4, "text-anchor": "end" }, words(tick)),
  ]);
  const times = [[first, "start"], [end, "end"]].map(([time, anchor]) =>
    drawing("text", { x: across(time), y: HEIGHT - 6, "text-anchor": anchor }, moment(time)));
  return { across, width, frame: [...levels, ...times] };
}

const down = (value, most) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);

function put(place, children, width, label) {
  place.replaceChildren(drawing("svg", {
    role: "img", "aria-label": label, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT,
  }, ...children));
}

function nothing(place, words) {
  place.replaceChildren(element("p", { class: "note" }, words));
}

export const percent = (share) => `${Math.round(share * 100)} %`;

export const moment = (seconds) =>
  new Date(seconds * 1000).toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

export function span(seconds) {
  for (const [size, name] of [[86_400, "day"], [3600, "hour"], [60, "minute"]]) {
    const count = Math.round(seconds / size);
    if (seconds >= size) return count === 1 ? `1 ${name}` : `${count} ${name}s`;
  }
  return `${Math.round(seconds)} s`;
}
