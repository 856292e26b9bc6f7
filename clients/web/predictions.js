/** What tasks say of a text: scores as bars, spans as marks in the text. */

import { fill, h } from "./dom.js";
import { score } from "./format.js";
import { problem } from "./messages.js";

const LABELS_SHOWN = 5;
const COLOURS = 6;
/** A marked text that is longer has a row of cards to itself. */
const NARROW_CHARS = 280;

/** One task's answer. `text` is what was sent: a string, or two. */
export function card(name, prediction, text) {
  if (prediction.error) return frame(name, null, [], problem(prediction.error));
  const marked = Boolean(prediction.spans);
  const body = marked ? spans(prediction.spans, text) : bars(prediction);
  const shown = frame(name, prediction, flags(prediction), body);
  shown.classList.toggle("wide", marked && text.length > NARROW_CHARS);
  return shown;
}

function frame(name, prediction, flags, body) {
  const task = prediction?.task ?? name.split("@")[0];
  const version = prediction ? h("span", { class: "version" }, `v${prediction.version}`) : null;
  const title = h("h2", {}, h("a", { href: `#/tasks/${encodeURIComponent(task)}` }, task), version);
  return h("article", { class: "card" }, h("header", {}, title, flags), body);
}

function flags(prediction) {
  const flag = (text, title) => h("span", { class: "flag", title }, text);
  return [
    prediction.abstained &&
      flag("abstains", "No label is sure enough by this task's own threshold."),
    prediction.windows > 1 && flag(`${prediction.windows} windows`, "A long text, read in parts."),
    prediction.truncated && flag("cut", "The text is too long: only its beginning was read. Windows read all of it."),
    prediction.calibrated === false &&
      flag("uncalibrated", "No fitted temperature shaped these scores."),
  ];
}

function bars({ labels = [], predicted = null, abstained = false, task_kind }) {
  const best = labels.slice(0, abstained ? 0 : 1).map(({ label }) => label);
  const chosen = new Set(predicted ?? best);
  const list = h("ol", { class: "scores" });
  const rows = labels.map((item) => bar(item, chosen.has(item.label), Boolean(predicted)));
  fill(list, rows.slice(0, LABELS_SHOWN));
  const note =
    task_kind === "multi_label" && chosen.size === 0
      ? h("p", { class: "fine" }, "No label is over its threshold.")
      : null;
  return [note, list, rows.length > LABELS_SHOWN ? more(list, rows) : null];
}

function bar({ label, score: value }, chosen, several) {
  const filled = h("span", { class: "filled" });
  filled.style.setProperty("--share", Math.min(Math.max(value, 0), 1));
  return h(
    "li",
    { class: chosen ? "chosen" : "" },
    filled,
    h(
      "span",
      { class: "label", title: label },
      label,
      chosen && several ? h("span", { class: "unseen" }, " (predicted)") : null,
    ),
    h("span", { class: "value" }, score(value)),
  );
}

function more(list, rows) {
  const button = h(
    "button",
    { type: "button", class: "quiet more", onclick: show },
    `All ${rows.length} labels`,
  );
  function show() {
    fill(list, rows);
    button.remove();
    list.tabIndex = -1;
    list.focus();
  }
  return button;
}

/** Offsets count code points, as Python does; JavaScript's strings count UTF-16 units. */
function spans(found, text) {
  const points = Array.from(typeof text === "string" ? text : text.join("\n"));
  const parts = [];
  let at = 0;
  for (const span of [...found].sort((a, b) => a.start - b.start)) {
    if (span.start < at) continue;
    parts.push(points.slice(at, span.start).join(""), mark(span, points));
    at = span.end;
  }
  parts.push(points.slice(at).join(""));
  const none = found.length === 0 ? h("p", { class: "fine" }, "Nothing found.") : null;
  return [h("p", { class: "marked" }, parts), none];
}

function mark({ label, start, end, score: value }, points) {
  const tag = h(
    "span",
    { class: "tag" },
    ` ${label} `,
    h("span", { class: "value" }, score(value)),
  );
  return h("mark", { class: `colour-${colourOf(label)}` }, points.slice(start, end).join(""), tag);
}

/** The same label has the same colour in every text. */
function colourOf(label) {
  let sum = 0;
  for (const char of label) sum = (31 * sum + char.codePointAt(0)) % 9973;
  return sum % COLOURS;
}
