/** The tasks that serve, a page at a time. */

import * as api from "./api.js";
import { fill, h, settled } from "./dom.js";
import { kindName, shortMetrics } from "./facts.js";
import { ago, bytes, number } from "./format.js";
import { ask, notice, problem } from "./messages.js";
import * as pulse from "./pulse.js";
import { uploadPlace } from "./upload.js";

const PAGE = 100;
const LABELS_SHOWN = 4;
const COLUMNS = [
  "Task",
  "Answers with",
  "Method",
  "Labels",
  "Version",
  "Metrics (dev)",
  "Traffic",
  "Size",
  "Since",
];

/** Shows the view; returns what ends it. */
export function tasksView(root, server) {
  const rows = h("tbody");
  const count = h("span", { class: "fine", role: "status" });
  const more = h(
    "button",
    { type: "button", hidden: true, onclick: () => load(true) },
    "Show more",
  );
  const trouble = h("div");
  const search = h("input", {
    type: "search",
    placeholder: "Find by name",
    "aria-label": "Find a task by name",
    oninput: settled(() => load(false), 150),
  });
  let last = "";
  let asked = null;

  async function load(further) {
    asked?.abort();
    asked = new AbortController();
    const wanted = { search: search.value.trim(), after: further ? last : "", limit: PAGE };
    try {
      const found = await api.tasks({ ...wanted, signal: asked.signal });
      if (!further) fill(rows);
      rows.append(...found.tasks.map(row));
      showTraffic(rows);
      last = found.tasks.at(-1)?.task ?? last;
      more.hidden = found.tasks.length === 0 || rows.children.length >= (found.total ?? 0);
      const shown = rows.children.length;
      const total = found.total ?? shown;
      fill(count, shown < total ? `${number(shown)} of ${number(total)}` : `${number(total)}`);
      fill(trouble, total === 0 ? empty(wanted.search) : null);
    } catch (error) {
      if (error.name !== "AbortError") fill(trouble, problem(error));
    }
  }

  function create(files = null) {
    ask("New task", (close) => {
      const place = uploadPlace({ limits: server?.limits, onDone: close });
      if (files) queueMicrotask(() => place.take(files));
      return h(
        "div",
        {},
        place.element,
        h(
          "p",
          { class: "actions" },
          h("button", { type: "button", onclick: () => close(null) }, "Close"),
        ),
      );
    }).then((answer) => {
      if (!answer) return;
      notice(`${answer.task} serves, version ${answer.version}.`);
      location.hash = `#/tasks/${encodeURIComponent(answer.task)}`;
    });
  }

  const table = h(
    "table",
    { class: "list" },
    h("caption", { class: "unseen" }, "Tasks that serve"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        COLUMNS.map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    rows,
  );
  fill(
    root,
    h(
      "div",
      { class: "head" },
      h("h1", { tabindex: "-1" }, "Tasks ", count),
      search,
      h("button", { type: "button", class: "primary", onclick: () => create() }, "New task"),
    ),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Tasks" }, table),
    trouble,
    h("p", { class: "actions start" }, more),
  );
  load(false);
  const stopDrops = takeDrops(root, create);
  const stopPulse = pulse.watch(() => showTraffic(rows));
  return () => {
    asked?.abort();
    stopDrops();
    stopPulse();
  };
}

function row(task) {
  const labels = task.labels ?? [];
  const hidden = labels.length - LABELS_SHOWN;
  const names =
    labels.slice(0, LABELS_SHOWN).join(", ") + (hidden > 0 ? ` and ${hidden} more` : "");
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      h("a", { href: `#/tasks/${encodeURIComponent(task.task)}` }, task.task),
    ),
    h("td", {}, kindName(task)),
    h("td", {}, task.method),
    h(
      "td",
      { class: "labels", title: labels.slice(0, 100).join(", ") },
      h("b", {}, number(labels.length)),
      ` ${names}`,
    ),
    h("td", { class: "num" }, `v${task.version}`),
    h("td", {}, shortMetrics(task.metrics)),
    h("td", { class: "num traffic", "data-task": task.task }, "–"),
    h("td", { class: "num" }, bytes(task.size_bytes)),
    h("td", {}, ago(task.created_at)),
  );
}

function showTraffic(rows) {
  const traffic = pulse.trafficByTask();
  for (const cell of rows.querySelectorAll(".traffic")) {
    const found = traffic.get(cell.dataset.task);
    cell.textContent = found ? `${number(found.per_s)}/s` : "–";
    cell.title = found ? `${number(found.total)} answers since the server started` : "";
  }
}

function empty(search) {
  return h(
    "p",
    { class: "empty" },
    search
      ? `No task has “${search}” in its name.`
      : "No task serves yet. Drop an adapter file here.",
  );
}

/** Files dropped anywhere on the view open the upload, instead of leaving the page. */
function takeDrops(root, create) {
  const over = (event) => event.preventDefault();
  const drop = (event) => {
    if (event.defaultPrevented) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) create(event.dataTransfer.files);
  };
  root.addEventListener("dragover", over);
  root.addEventListener("drop", drop);
  return () => {
    root.removeEventListener("dragover", over);
    root.removeEventListener("drop", drop);
  };
}
