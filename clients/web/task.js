/** One task: what it is, how good it is, its versions, and every change that can be made to it. */

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { factList, kindName } from "./facts.js";
import { ago, bytes, digest, number } from "./format.js";
import { keyButton } from "./key.js";
import { confirm, notice, problem } from "./messages.js";
import * as pulse from "./pulse.js";
import { report } from "./report.js";
import { askForTrial, trialsPart } from "./trials.js";
import { uploadPlace } from "./upload.js";
import { showTraffic, versionTable } from "./versions.js";

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
      await showReport(task.version);
    } catch (error) {
      fill(trouble, problem(error));
      return;
    }
    try {
      const listed = await api.versions(name, { quiet: true });
      await trials.load();
      fill(versions, versionTable(name, listed, trials.runs, does));
      showTraffic(versions, name);
    } catch (error) {
      fill(versions, h("h2", {}, "Versions"), problem(error), keyButton(error, load));
    }
  }

  async function showReport(version) {
    fill(details, report(await api.version(name, version)));
  }

  async function openReport(version) {
    try {
      await showReport(version);
      details.querySelector("h2").focus();
    } catch (error) {
      fill(trouble, problem(error));
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

  const endTrial = (kind) =>
    change(
      () => api.endTrial(name, kind),
      () => `The ${kind} of ${name} is over.`,
    );

  async function startTrial(version) {
    const wanted = await askForTrial(version);
    if (wanted)
      change(
        () => api.startTrial(name, wanted.kind, wanted.body),
        () => `Version ${version} of ${name} runs as its ${wanted.kind}.`,
      );
  }

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

  const does = {
    activate,
    rollback,
    trial: startTrial,
    report: openReport,
    download: save,
    remove: removeVersion,
  };
  const trials = trialsPart(name, { activate, end: endTrial, changed: load });
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
    trials.element,
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
  const stopPulse = pulse.watch(() => showTraffic(versions, name));
  return () => {
    stopPulse();
    trials.leave();
  };
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
  return factList("facts", facts);
}
