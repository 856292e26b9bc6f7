/** A task's shadow and canary: what came of them so far, and the question for a new one. */

import * as api from "./api.js";
import { fill, freshId, h } from "./dom.js";
import { factList } from "./facts.js";
import { ago, number, percent, plural, score, seconds } from "./format.js";
import { ask } from "./messages.js";
import * as pulse from "./pulse.js";

const EVERY_MS = 2000;
const USUAL = { shadow: 100, canary: 5 };
const BY = { text: "texts", caller: "callers" };

/**
 * The part of a page that shows a task's trials. `load()` asks for them and keeps them up to date
 * until `leave()`; `runs(number)` says as what a version runs. `does` has what the buttons call:
 * `activate` with a number, `end` with a kind, and `changed` where others ended or started one.
 */
export function trialsPart(task, does) {
  const element = h("div", { class: "trials" });
  let known = null;
  let panels = [];
  let timer = null;
  let left = false;

  function take(trials) {
    const same = known !== null && outline(known) === outline(trials);
    known = trials;
    if (!same) {
      panels = [
        trials.shadow && shadowPanel(trials.shadow.version, does),
        trials.canary && canaryPanel(task, trials.canary.version, trials.active, does),
      ].filter(Boolean);
      fill(
        element,
        panels.map((panel) => panel.element),
      );
    }
    for (const panel of panels) panel.show(trials);
    return same;
  }

  async function load() {
    clearTimeout(timer);
    take(await api.trials(task));
    follow();
  }

  function follow() {
    clearTimeout(timer);
    if (panels.length && !left) timer = setTimeout(again, EVERY_MS);
  }

  async function again() {
    const mine = timer;
    let same = true;
    try {
      if (!document.hidden) same = take(await api.trials(task, { quiet: true }));
    } catch {
      // The header tells of a server that is gone; the next reading may be there again.
    }
    if (timer !== mine || left) return;
    if (same) follow();
    else does.changed();
  }

  function leave() {
    clearTimeout(timer);
    left = true;
  }

  function runs(version) {
    return ["shadow", "canary"].find((kind) => known?.[kind]?.version === version) ?? null;
  }

  return { element, load, leave, runs };
}

/** What makes two readings be of the same trials. */
function outline({ active, shadow, canary }) {
  return JSON.stringify([active, shadow?.version, shadow?.since, canary?.version, canary?.since]);
}

function shadowPanel(version, does) {
  const filled = h("span", { class: "filled" });
  const agreement = h("span", { class: "value" });
  const agrees = h("span", { class: "label" });
  const facts = factCells(["Read by both", "Scores differ by", "Reads", "Not read", "Counted"]);
  const bar = h("ol", { class: "scores" }, h("li", {}, filled, agrees, agreement));
  return {
    element: panel("shadow", version, does, bar, facts.element),
    show({ active, shadow }) {
      filled.style.setProperty("--share", shadow.agreement ?? 0);
      fill(agrees, `Agrees with version ${active}`);
      fill(agreement, shadow.agreement === null ? "–" : percent(shadow.agreement));
      const apart = shadow.score_difference;
      facts.show([
        `${plural(shadow.compared, "text")}, ${number(shadow.agreed)} with the same answer`,
        apart === null ? "–" : `${score(apart)} on average`,
        `${percent(shadow.share)} of the texts`,
        unread(shadow),
        counted(shadow),
      ]);
    },
  };
}

function unread({ dropped, unloaded }) {
  const reasons = [
    dropped && `${plural(dropped, "text")} while too much waited`,
    unloaded && `${plural(unloaded, "text")} while its adapter was not in memory`,
  ];
  return reasons.filter(Boolean).join(", ") || "none";
}

function canaryPanel(task, version, active, does) {
  const columns = ["Version", "Texts", "Share", "Now", "Median", "p95", "Refused"];
  const rows = [version, active].map((number_, at) => trafficRow(number_, at === 0));
  const facts = factCells(["Answers", "Left to the active", "Counted"]);
  const table = h(
    "table",
    { class: "list" },
    h("caption", { class: "unseen" }, "Traffic by version"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        columns.map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map(({ element }) => element),
    ),
  );
  const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Canary traffic" };
  return {
    element: panel("canary", version, does, h("div", region, table), facts.element),
    show({ canary }) {
      const answered = [canary.answered, canary.active_answered];
      const all = canary.answered + canary.active_answered;
      const watched = pulse.versionsOf(task);
      rows.forEach((row, at) => {
        row.show(answered[at], all, watched.get(`${[version, active][at]}`));
      });
      facts.show([
        `${percent(canary.share)} of the ${BY[canary.by]}`,
        plural(canary.fell_back, "text"),
        counted(canary),
      ]);
    },
  };
}

/** Counts are the trial's own; rate, times and refusals come from the metrics, if there are any. */
function trafficRow(version, isCanary) {
  const cells = Array.from({ length: 6 }, () => h("td", { class: "num" }));
  const flag = isCanary
    ? h("span", { class: "flag" }, "canary")
    : h("span", { class: "flag good" }, "active");
  return {
    element: h("tr", {}, h("th", { scope: "row" }, `v${version} `, flag), cells),
    show(answered, all, watched) {
      const time = (value) => (value == null ? "–" : seconds(value));
      const shown = [
        number(answered),
        all ? percent(answered / all) : "–",
        watched ? `${number(watched.per_s)}/s` : "–",
        time(watched?.p50_s),
        time(watched?.p95_s),
        watched ? number(watched.refused) : "–",
      ];
      cells.forEach((cell, at) => fill(cell, shown[at]));
    },
  };
}

function counted({ counted_since, started_by }) {
  return ["since ", ago(counted_since), started_by ? ` · started by ${started_by}` : null];
}

function panel(kind, version, does, ...content) {
  const id = freshId();
  const button = (text, onclick) => h("button", { type: "button", class: "quiet", onclick }, text);
  return h(
    "section",
    { class: "card", "aria-labelledby": id },
    h(
      "header",
      {},
      h("h2", { id }, `${kind === "shadow" ? "Shadow" : "Canary"}: version ${version}`),
      button(`Let version ${version} serve all`, () => does.activate(version)),
      button(`End the ${kind}`, () => does.end(kind)),
    ),
    content,
  );
}

/** Names with a place for the value of each. */
function factCells(names) {
  const cells = names.map(() => h("span"));
  return {
    element: factList(
      "card-list",
      names.map((name, at) => [name, cells[at]]),
    ),
    show: (values) => values.forEach((value, at) => fill(cells[at], value)),
  };
}

/** Asks as what a version shall run; resolves to kind and body of the call, or null. */
export function askForTrial(version) {
  return ask(`Run version ${version} beside the active one`, (close) => form(close, version));
}

function form(close, version) {
  const [shareId, byId, group] = [freshId(), freshId(), freshId()];
  const share = h("input", {
    id: shareId,
    type: "number",
    min: "0.01",
    max: "100",
    step: "any",
    required: true,
  });
  const by = h(
    "select",
    { id: byId },
    h("option", { value: "text" }, "texts"),
    h("option", { value: "caller" }, "callers, by the name of the key"),
  );
  const byPart = h("div", {}, h("label", { for: byId }, "Split by"), by);
  let kind = null;

  function choose(wanted) {
    kind = wanted;
    share.value = USUAL[kind];
    byPart.hidden = kind !== "canary";
  }

  function radio(value, title, text) {
    const id = freshId();
    const input = h("input", {
      type: "radio",
      name: group,
      id,
      checked: value === "shadow",
      onchange: () => choose(value),
    });
    return h(
      "p",
      { class: "option" },
      input,
      h("label", { for: id }, title),
      h("span", { class: "fine" }, text),
    );
  }

  function start(event) {
    event.preventDefault();
    const body = { version, share: Number(share.value) / 100 };
    close({ kind, body: kind === "canary" ? { ...body, by: by.value } : body });
  }

  choose("shadow");
  return h(
    "form",
    { onsubmit: start },
    h(
      "fieldset",
      { class: "options" },
      h("legend", { class: "unseen" }, "As"),
      radio("shadow", "Shadow", "It reads along, answers nobody, and is compared."),
      radio("canary", "Canary", "It answers a share of the traffic."),
    ),
    h("label", { for: shareId }, "Share in %"),
    share,
    byPart,
    h(
      "p",
      { class: "actions" },
      h("button", { type: "button", onclick: () => close(null) }, "Cancel"),
      h("button", { class: "primary" }, "Start"),
    ),
  );
}
