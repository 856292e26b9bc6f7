/** What one version's file says of how it was made and how good it is. */

import { h } from "./dom.js";
import { factList, metricName, orderedMetrics } from "./facts.js";
import { ago, digest, number, score } from "./format.js";

/** The report of a version, as /v1/tasks/{task}/versions/{version} gives it. */
export function report(version) {
  const { metrics, card, labels, calibration } = version;
  const part = (title, content) => h("section", {}, h("h3", {}, title), content);
  return [
    h(
      "h2",
      { tabindex: "-1" },
      `Report of version ${version.version} `,
      version.active ? h("span", { class: "flag good" }, "active") : null,
    ),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        {},
        part("Metrics on its dev set", metricList(metrics)),
        part("From logits to answers", factList("card-list", answering(version))),
      ),
      h(
        "div",
        {},
        part("How it was made", factList("card-list", origin(version))),
        part("Card", cardList(card)),
      ),
    ),
    h("h3", {}, `Labels (${number(labels.length)})`),
    h(
      "ul",
      { class: "chips labels" },
      labels.map((label, at) => h("li", {}, label, thresholdOf(calibration, at))),
    ),
  ];
}

function origin(version) {
  const sizes = Object.entries(version.sizes).map(([name, value]) => `${name} ${number(value)}`);
  return [
    ["Method", version.method],
    ["Sizes", sizes.join(" · ")],
    version.pooling && ["Its head reads", version.pooling === "mean" ? "the mean" : "the first"],
    ["Trained", ago(version.trained_at)],
    ["Training rows", digest(version.data_digest)],
    ["Encoder", [`${version.encoder} `, digest(version.encoder_fingerprint)]],
  ].filter(Boolean);
}

function answering({ calibration, canaries, canary_tolerance }) {
  const { temperature, thresholds, abstain } = calibration;
  return [
    ["Temperature", temperature === 1 ? "1, so none was fitted" : score(temperature)],
    thresholds && ["Thresholds", "of its own for each label, below"],
    abstain !== null && ["Abstains", `below ${score(abstain)}`],
    ["Checked by", `${number(canaries)} canaries, to ${canary_tolerance} of a logit`],
  ].filter(Boolean);
}

function thresholdOf({ thresholds }, at) {
  if (!thresholds) return null;
  return h("span", { class: "fine", title: "Given from this score on" }, score(thresholds[at]));
}

function metricList(metrics) {
  const found = orderedMetrics(metrics);
  if (found.length === 0) return h("p", { class: "fine" }, "The file states none.");
  return h(
    "ol",
    { class: "scores" },
    found.map(([name, value]) => {
      const filled = h("span", { class: "filled" });
      filled.style.setProperty("--share", value >= 0 && value <= 1 ? value : 0);
      return h(
        "li",
        {},
        filled,
        h("span", { class: "label" }, metricName(name)),
        h("span", { class: "value" }, score(value)),
      );
    }),
  );
}

function cardList(card) {
  const entries = Object.entries(card ?? {});
  return entries.length
    ? factList("card-list", entries)
    : h("p", { class: "fine" }, "The file has none.");
}
