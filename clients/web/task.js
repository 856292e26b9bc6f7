/** One task: what it is, how good it is, its versions, and every change that can be made to it. */

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { kindName, metricName, orderedMetrics, shortMetrics } from "./facts.js";
import { ago, bytes, digest, number, score } from "./format.js";
import { keyButton } from "./key.js";
import { confirm, notice, problem } from "./messages.js";
import * as pulse from "./pulse.js";
import { uploadPlace } from "./upload.js";

const HISTORY_SHOWN = 12;

/** Shows the view; returns what ends it. */
export function taskView(root, server, name) {
  const facts = h("section", { "aria-label": "What it is" });
  const versions = h("div");
  const details = h("section", { "aria-label": "Report" });
  const trouble = h("div");

  async function load() {
    try {
      const task = await api.task(name);
      fill(facts, describe(task));
      fill(details, report(task));
    } catch (error) {
      fill(trouble, problem(error));
      return;
    }
    try {
      fill(versions, versionTable(await api.versions(name, { quiet: true })));
      showTraffic();
    } catch (error) {
      fill(versions, h("h2", {}, "Versions"), problem(error), keyButton(error, load));
    }
  }

  /** Makes a change and shows what is so then; the button that asked keeps the focus if it can. */
  async function change(work, done) {
    fill(trouble);
    try {
      const answer = await work();
      notice(done(answer));
    } catch (error) {
      fill(trouble, problem(error));
      return;
    }
    await load();
    title.focus();
  }

  const activate = (version) =>
    change(
      () => api.activate(name, version),
      () => `Version ${version} of ${name} serves now.`,
    );
  const rollback = () =>
    change(
      () => api.rollback(name),
      ({ version }) => `${name} is back at version ${version}.`,
    );

  async function removeVersion(version) {
    const text = `Version ${version} of ${name} cannot be brought back from here.`;
    if (await confirm("Delete this version?", text, `Delete version ${version}`))
      change(
        () => api.removeVersion(name, version),
        () => `Version ${version} of ${name} is gone.`,
      );
  }

  async function removeTask() {
    const text = `${name} stops answering at once, and all its versions are deleted.`;
    if (!(await confirm("Delete this task?", text, `Delete ${name}`))) return;
    try {
      await api.removeTask(name);
      notice(`${name} is gone.`);
      location.hash = "#/tasks";
    } catch (error) {
      fill(trouble, problem(error));
    }
  }

  async function save(version) {
    try {
      const link = h("a", {
        href: URL.createObjectURL(await api.download(name, version)),
        download: `${name}.v${version}.safetensors`,
      });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      fill(trouble, problem(error));
    }
  }

  function versionTable({ versions: list, active, history }) {
    const columns = ["Version", "Digest", "Metrics (dev)", "Traffic", "Size", "Since", ""];
    const newest = [...list].reverse();
    return [
      h(
        "div",
        { class: "head" },
        h("h2", {}, "Versions"),
        h(
          "button",
          {
            type: "button",
            disabled: list.length < 2,
            onclick: rollback,
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
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              columns.map((text) =>
                h("th", { scope: "col" }, text || h("span", { class: "unseen" }, "Changes")),
              ),
            ),
          ),
          h(
            "tbody",
            {},
            newest.map((version) => versionRow(version, version.version === active)),
          ),
        ),
      ),
      historyPart(history),
    ];
  }

  function versionRow(version, active) {
    const number_ = version.version;
    const button = (text, onclick) =>
      h(
        "button",
        { type: "button", class: "quiet", onclick, "aria-label": `${text} version ${number_}` },
        text,
      );
    return h(
      "tr",
      { class: active ? "active" : "" },
      h(
        "th",
        { scope: "row" },
        `v${number_} `,
        active ? h("span", { class: "flag good" }, "active") : null,
      ),
      h("td", {}, digest(version.digest)),
      h("td", {}, shortMetrics(version.metrics)),
      h("td", { class: "num traffic", "data-version": number_ }, "–"),
      h("td", { class: "num" }, bytes(version.size_bytes)),
      h("td", {}, ago(version.created_at)),
      h(
        "td",
        { class: "buttons" },
        active ? null : button("Activate", () => activate(number_)),
        h(
          "a",
          {
            class: "button quiet",
            href: `#/?task=${encodeURIComponent(`${name}@${number_}`)}`,
            "aria-label": `Try version ${number_}`,
          },
          "Try",
        ),
        button("Download", () => save(number_)),
        active ? null : button("Delete", () => removeVersion(number_)),
      ),
    );
  }

  function showTraffic() {
    for (const cell of versions.querySelectorAll(".traffic")) {
      const found = pulse.trafficByVersion(name).get(cell.dataset.version);
      cell.textContent = found ? `${number(found.per_s)}/s` : "–";
      cell.title = found ? `${number(found.total)} answers since the server started` : "";
    }
  }

  const title = h("h1", { tabindex: "-1" }, name);
  const place = uploadPlace({ task: name, limits: server?.limits, onDone: load });
  fill(
    root,
    h("p", { class: "crumbs" }, h("a", { href: "#/tasks" }, "Tasks"), " / "),
    h(
      "div",
      { class: "head" },
      title,
      h("a", { class: "button", href: `#/?task=${encodeURIComponent(name)}` }, "Try it"),
      h("button", { type: "button", class: "danger", onclick: removeTask }, "Delete task"),
    ),
    trouble,
    facts,
    versions,
    h(
      "section",
      { "aria-labelledby": "upload" },
      h("h2", { id: "upload" }, "New version"),
      place.element,
    ),
    details,
  );
  load();
  return pulse.watch(showTraffic);
}

function describe(task) {
  const facts = [
    ["Answers with", kindName(task)],
    ["Method", task.method],
    ["Active", [`v${task.version} `, digest(task.digest)]],
    [
      "Size",
      `${bytes(task.size_bytes)} · ${number(task.parameters)} parameters · ${(100 * task.parameter_share).toFixed(2)} % of the encoder`,
    ],
    ["Reads up to", `${number(task.max_tokens)} tokens`],
    ["Since", ago(task.created_at)],
    ["Encoder", digest(task.encoder_fingerprint)],
  ];
  return h("dl", { class: "facts" }, facts.map(pairOf));
}

/** What the active version's file says of how it was made and how good it is. */
function report(task) {
  return [
    h(
      "div",
      { class: "columns" },
      h("section", {}, h("h2", {}, "Metrics on its dev set"), metricList(task.metrics)),
      h("section", {}, h("h2", {}, "Card"), cardList(task.card)),
    ),
    h("h2", {}, `Labels (${number(task.labels.length)})`),
    h(
      "ul",
      { class: "chips labels" },
      task.labels.map((label) => h("li", {}, label)),
    ),
  ];
}

function pairOf([name, value]) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
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
  if (entries.length === 0) return h("p", { class: "fine" }, "The file has none.");
  return h("dl", { class: "card-list" }, entries.map(pairOf));
}

function historyPart(history) {
  const newest = [...history].reverse();
  const line = ({ at, action, version, by }) =>
    h(
      "li",
      {},
      `${action} v${version} `,
      h("span", { class: "fine" }, ago(at), by ? ` by ${by}` : null),
    );
  return h(
    "details",
    { class: "history" },
    h("summary", {}, `History (${number(history.length)})`),
    h("ol", {}, newest.slice(0, HISTORY_SHOWN).map(line)),
  );
}
