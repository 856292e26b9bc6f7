/** How the server is doing: throughput, latency, batches. */

import { fill, h } from "./dom.js";
import { factList } from "./facts.js";
import { bytes, number, seconds } from "./format.js";
import { keyButton } from "./key.js";
import { problem } from "./messages.js";
import { barPanel, linePanel } from "./plots.js";
import * as pulse from "./pulse.js";

const perSecond = (value) => `${number(value)}/s`;

/** Each panel, and the readings it draws. */
const LINES = [
  ["Answers (text × task)", perSecond, ["answers_per_s"]],
  ["Requests", perSecond, ["requests_per_s"]],
  ["Latency of classify, median and p95", seconds, ["p50_s", "p95_s"]],
  ["Wait for a batch, p95", seconds, ["wait_p95_s"]],
  [
    "Texts encoded, and found in the cache",
    perSecond,
    ["encoder_rows_per_s", "cache_hits_per_s"],
  ],
  ["Tokens encoded", perSecond, ["tokens_per_s"]],
  ["Tokens that wait", number, ["queue_tokens"]],
  ["Refusals", perSecond, ["refusals_per_s"]],
];

/** Shows the view; returns what ends it. */
export function liveView(root) {
  const panels = LINES.map(([title, format, names]) => ({ ...linePanel(title, format), names }));
  const batches = barPanel("Batches by texts in them, up to");
  const state = h("div");
  const refusals = h("section", { "aria-label": "Refusals" });
  const trouble = h("div");

  function show() {
    const { refused } = pulse;
    fill(trouble, refused ? [problem(refused), keyButton(refused, pulse.tick)] : null);
    const { points } = pulse;
    if (points.length === 0) return;
    for (const { names, show } of panels)
      show(...names.map((name) => points.map((point) => point[name])));
    batches.show(batchSizes(points));
    fill(state, factList("facts", facts(points.at(-1))));
    fill(refusals, refusalTable(pulse.refusals()));
  }

  fill(
    root,
    h(
      "div",
      { class: "head" },
      h("h1", { tabindex: "-1" }, "Live"),
      h("span", { class: "fine" }, "the last five minutes, every two seconds"),
    ),
    trouble,
    state,
    h(
      "div",
      { class: "panels" },
      panels.map(({ element }) => element),
      batches.element,
    ),
    refusals,
  );
  return pulse.watch(show);
}

/** Batches of the whole time shown, by how many texts they held. */
function batchSizes(points) {
  const sums = new Map();
  for (const { batches } of points)
    for (const [bound, count] of batches) sums.set(bound, (sums.get(bound) ?? 0) + count);
  return [...sums].map(([bound, count]) => {
    return [bound === Infinity ? "more" : `${bound}`, count];
  });
}

function facts(point) {
  return [
    ["Tasks", number(point.tasks)],
    ["Adapters resident", `${number(point.resident_adapters)} · ${bytes(point.resident_bytes)}`],
    ["Features kept", bytes(point.cache_bytes)],
  ];
}

function refusalTable(found) {
  if (found.length === 0) return null;
  return [
    h("h2", {}, "Refused since the start"),
    h(
      "ul",
      { class: "chips" },
      found.map(({ code, count }) => h("li", {}, h("code", {}, code), ` ${number(count)}`)),
    ),
  ];
}
