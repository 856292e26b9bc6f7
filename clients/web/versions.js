/** The table of a task's versions, and the changes that each can be asked for. */

import { h } from "./dom.js";
import { shortMetrics } from "./facts.js";
import { ago, bytes, digest, number, percent } from "./format.js";
import * as pulse from "./pulse.js";

const HISTORY_SHOWN = 12;
const COLUMNS = ["Version", "Digest", "Metrics (dev)", "Traffic", "Size", "Since"];

/**
 * The table and the history. `runs(number)` says as what a version runs beside the active one, or
 * null; `does` has what the buttons call: `report`, `activate`, `trial`, `download`, `remove` with
 * a number, and `rollback`.
 */
export function versionTable(task, { versions, active, history }, runs, does) {
  const newest = [...versions].reverse();
  return [
    h(
      "div",
      { class: "head" },
      h("h2", {}, "Versions"),
      h(
        "button",
        {
          type: "button",
          disabled: versions.length < 2,
          onclick: does.rollback,
          title: "The version that was active before serves again",
        },
        "Roll back",
      ),
    ),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Versions" },
      h(
        "table",
        { class: "list" },
        h("thead", {}, headRow()),
        h(
          "tbody",
          {},
          newest.map((version) =>
            row(task, version, version.version === active ? "active" : runs(version.version), does),
          ),
        ),
      ),
    ),
    historyPart(history),
  ];
}

/** Writes into the table what each version answers now. */
export function showTraffic(root, task) {
  const traffic = pulse.trafficByVersion(task);
  for (const cell of root.querySelectorAll(".traffic")) {
    const found = traffic.get(cell.dataset.version);
    cell.textContent = found ? `${number(found.per_s)}/s` : "–";
    cell.title = found ? `${number(found.total)} answers since the server started` : "";
  }
}

function headRow() {
  return h(
    "tr",
    {},
    COLUMNS.map((text) => h("th", { scope: "col" }, text)),
    h("th", { scope: "col" }, h("span", { class: "unseen" }, "Changes")),
  );
}

function row(task, version, role, does) {
  const at = version.version;
  const button = (text, name, work) =>
    h(
      "button",
      { type: "button", class: "quiet", onclick: () => work(at), "aria-label": `${name} ${at}` },
      text,
    );
  const serves = role === "active";
  return h(
    "tr",
    { class: serves ? "active" : "" },
    h(
      "th",
      { scope: "row" },
      `v${at} `,
      role ? h("span", { class: serves ? "flag good" : "flag" }, role) : null,
    ),
    h("td", {}, digest(version.digest)),
    h("td", {}, shortMetrics(version.metrics)),
    h("td", { class: "num traffic", "data-version": at }, "–"),
    h("td", { class: "num" }, bytes(version.size_bytes)),
    h("td", {}, ago(version.created_at)),
    h(
      "td",
      { class: "buttons" },
      serves ? null : button("Activate", "Activate version", does.activate),
      serves ? null : button("Trial…", "Trial of version", does.trial),
      h(
        "a",
        {
          class: "button quiet",
          href: `#/?task=${encodeURIComponent(`${task}@${at}`)}`,
          "aria-label": `Try version ${at}`,
        },
        "Try",
      ),
      button("Report", "Report of version", does.report),
      button("Download", "Download version", does.download),
      role ? null : button("Delete", "Delete version", does.remove),
    ),
  );
}

function historyPart(history) {
  const newest = [...history].reverse();
  const line = ({ at, action, version, by, share }) =>
    h(
      "li",
      {},
      `${action.replace("_", " ")} v${version} `,
      share == null ? null : `with ${percent(share)} `,
      h("span", { class: "fine" }, ago(at), by ? ` by ${by}` : null),
    );
  return h(
    "details",
    { class: "history" },
    h("summary", {}, `History (${number(history.length)})`),
    h("ol", {}, newest.slice(0, HISTORY_SHOWN).map(line)),
  );
}
