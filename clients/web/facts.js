/** What several views say of a task. */

import { h } from "./dom.js";
import { score } from "./format.js";

/** The numbers that judge a task come first, the rest follow. */
const LEADING = ["accuracy", "macro_f1", "micro_f1", "span_f1", "f1", "ece"];

const NAMES = {
  ece: "calibration error",
  macro_f1: "macro F1",
  micro_f1: "micro F1",
  span_f1: "span F1",
  f1: "F1",
};

export function metricName(name) {
  return NAMES[name] ?? name.replaceAll("_", " ");
}

/** Metrics as `[name, value]`, the most telling first. */
export function orderedMetrics(metrics) {
  const rank = ([name]) => (LEADING.includes(name) ? LEADING.indexOf(name) : LEADING.length);
  return Object.entries(metrics ?? {}).sort((a, b) => rank(a) - rank(b));
}

/** The first few metrics in one line. */
export function shortMetrics(metrics, count = 2) {
  const shown = orderedMetrics(metrics).slice(0, count);
  return shown.map(([name, value]) =>
    h("span", { class: "metric" }, `${metricName(name)} `, h("b", {}, score(value))),
  );
}

const KINDS = { single_label: "one label", multi_label: "several labels", token: "spans" };

export function kindName({ task_kind, pair }) {
  return `${KINDS[task_kind] ?? task_kind}${pair ? " · pairs" : ""}`;
}

/** Names and what is so of each, as `[name, value]`. */
export function factList(className, entries) {
  return h(
    "dl",
    { class: className },
    entries.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}
