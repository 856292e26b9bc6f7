/** One text, or two, for one task or many. The view stays as it was while others are looked at. */

import * as api from "./api.js";
import { choice, fill, freshId, h } from "./dom.js";
import { number, plural } from "./format.js";
import { problem } from "./messages.js";
import { picker } from "./picker.js";
import { card } from "./predictions.js";
import { windowsChoice } from "./windows.js";

const EXAMPLE = "My card was charged twice, who do I call?";
const CARDS = 60;

let view = null;

/** Shows the view; `query` may choose tasks, as `?task=spam&task=mood@2`. */
export function tryView(root, query) {
  view ??= build();
  fill(root, view.element);
  view.picks.refresh();
  const names = query.getAll("task");
  if (names.length) view.picks.choose(names);
}

function build() {
  const picks = picker();
  const answers = h("section", {
    class: "answers",
    "aria-label": "Answers",
    "aria-live": "polite",
    "aria-busy": "false",
  });
  const [firstId, secondId, pairId] = [freshId(), freshId(), freshId()];
  const first = field(firstId, EXAMPLE);
  const second = field(secondId, "");
  first.required = true;
  const secondPart = h(
    "div",
    { hidden: true },
    h("label", { for: secondId }, "Second text"),
    second,
  );
  const pair = h("input", { type: "checkbox", id: pairId, onchange: setPair });
  const windows = windowsChoice();
  const firstLabel = h("label", { for: firstId }, "Text");
  const curl = h("pre", { tabindex: "0", "aria-label": "The same call with curl" });
  const button = h("button", { class: "primary" }, "Classify");
  let running = null;

  function setPair() {
    secondPart.hidden = !pair.checked;
    second.required = pair.checked;
    fill(firstLabel, pair.checked ? "First text" : "Text");
    windows.setPair(pair.checked);
    picks.setPair(pair.checked);
  }

  function body() {
    const names = picks.names();
    const input = pair.checked
      ? { pairs: [[first.value, second.value]] }
      : { texts: [first.value], ...windows.wanted() };
    return { tasks: names, ...input };
  }

  async function run(event) {
    event.preventDefault();
    running?.abort();
    running = new AbortController();
    const asked = body();
    fill(curl, curlLine(asked));
    // What was asked before is told no more, so nothing else would end that it is busy.
    answers.setAttribute("aria-busy", String(asked.tasks.length > 0));
    if (asked.tasks.length === 0) {
      fill(answers, h("p", { class: "empty" }, "Choose at least one task."));
      return;
    }
    try {
      fill(answers, answered(await api.classify(asked, running.signal), asked));
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(answers, problem(error));
    }
    answers.setAttribute("aria-busy", "false");
  }

  function onkeydown(event) {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    // As the button would, so that the form is checked first.
    form.requestSubmit();
  }

  const form = h(
    "form",
    { class: "ask", onsubmit: run, onkeydown },
    firstLabel,
    first,
    secondPart,
    h(
      "p",
      { class: "actions start" },
      button,
      h("span", { class: "fine" }, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter")),
      h("span", { class: "choices" }, windows.element, choice(pair, pairId, "a pair of texts")),
    ),
    windows.settings,
  );
  fill(answers, h("p", { class: "empty" }, "All tasks on a text share one pass of the encoder."));
  const details = h(
    "details",
    { class: "curl", ontoggle: () => fill(curl, curlLine(body())) },
    h("summary", {}, "As curl"),
    curl,
  );
  const title = h("h1", { class: "unseen", tabindex: "-1" }, "Try a text");
  const element = h(
    "div",
    { class: "try" },
    title,
    h("div", { class: "side" }, picks.element),
    h("div", { class: "work" }, form, details, answers),
  );
  return { element, picks };
}

function field(id, text) {
  const area = h("textarea", { id, rows: 2, spellcheck: "false" });
  area.value = text;
  return area;
}

function answered(found, asked) {
  const text = asked.texts ? asked.texts[0] : asked.pairs[0];
  const all = Object.entries(found.results[0].predictions);
  const cards = h(
    "div",
    { class: "cards" },
    all.slice(0, CARDS).map(([name, item]) => card(name, item, text)),
  );
  if (all.length === 0)
    return h(
      "p",
      { class: "empty" },
      "No task reads this input: ",
      asked.texts ? "send a pair, or upload a task." : "send a single text, or upload a task.",
    );
  const rest = all.length - CARDS;
  return [
    summary(found, all.length),
    cards,
    rest > 0
      ? h("p", { class: "fine" }, `${number(rest)} more tasks answered; choose some to see them.`)
      : null,
  ];
}

function summary(found, tasks) {
  const { total, ...stages } = found.stages_ms;
  const pass =
    found.encoder_rows === 0
      ? "no encoder pass (cached)"
      : `${plural(found.encoder_rows, "encoder row")}`;
  const time = total === undefined ? null : h("strong", {}, `${total.toFixed(1)} ms`);
  return h(
    "p",
    { class: "summary" },
    time,
    h("span", {}, `${plural(tasks, "task")} · ${plural(found.tokens, "token")} · ${pass}`),
    h(
      "span",
      { class: "fine" },
      Object.entries(stages)
        .map(([name, ms]) => `${name} ${ms.toFixed(1)}`)
        .join(" · "),
    ),
  );
}

function curlLine(body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = api.storedKey() ? ' -H "Authorization: Bearer $LABELMUX_KEY"' : "";
  return `curl -s ${api.url("v1/classify")}${key} -H 'Content-Type: application/json' -d '${quoted}'`;
}
