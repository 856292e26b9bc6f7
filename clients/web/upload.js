/** Sends an adapter file: by drag and drop, or chosen. */

import * as api from "./api.js";
import { fill, freshId, h } from "./dom.js";
import { bytes, score } from "./format.js";
import { problem } from "./messages.js";

/** What becomes of a file that passed its checks, as the server takes it. */
const THEN = {
  now: "it serves at once",
  later: "it waits, to be tried or activated",
  gated: "it serves if it passes the task's gate",
};

/**
 * A place for a file. With `task` null it asks for the name of a new one, else for what shall become
 * of the version. `limits` are those of /v1/info; `onDone(answer)` is called once the version is
 * there, with null where the gate kept it from serving.
 */
export function uploadPlace({ task = null, limits, onDone }) {
  const fileId = freshId();
  const input = h("input", {
    type: "file",
    id: fileId,
    accept: ".safetensors",
    onchange: () => take(input.files),
  });
  const state = h("div", { class: "state", role: "status" });
  const name = task === null ? nameField() : null;
  const then = task === null ? null : thenField();
  const send = h(
    "button",
    { type: "button", class: "primary", hidden: true, onclick: run },
    "Upload",
  );
  let file = null;
  let running = false;

  function take(files) {
    if (running || files.length === 0) return;
    if (files.length > 1) return refuse("several_files", "one adapter at a time, please");
    file = files[0];
    if (limits && file.size > limits.max_upload_bytes)
      return refuse(
        "file_too_large",
        `${file.name} has ${bytes(file.size)}, and this server takes ${bytes(limits.max_upload_bytes)} at most`,
      );
    if (file.size === 0) return refuse("empty_file", `${file.name} is empty, or a folder`);
    if (name && !name.input.value) name.input.value = file.name.replace(/\.safetensors$/, "");
    fill(state, h("p", {}, h("strong", {}, file.name), ` ${bytes(file.size)}`));
    if (!name) return run();
    send.hidden = false;
    send.focus();
  }

  function refuse(code, message) {
    fill(state, problem({ code, message }));
  }

  async function run() {
    if (running || (name && !name.input.reportValidity())) return;
    running = true;
    send.disabled = true;
    const bar = h("progress", { max: "1", value: "0", "aria-label": `Upload of ${file.name}` });
    const words = h("span", {}, "Uploading");
    fill(state, h("p", {}, bar, " ", words));
    const onProgress = (share) => {
      bar.value = share;
      if (share === 1) fill(words, "Checking: shapes, values, and its canaries on this encoder");
    };
    try {
      const wanted = task ?? name.input.value;
      const activate = then?.select.value ?? "now";
      const answer = await api.upload(wanted, file, {
        activate,
        createOnly: task === null,
        onProgress,
      });
      fill(state, h("p", { class: "good" }, outcome(answer)));
      onDone(answer);
    } catch (error) {
      fill(state, problem(error));
      if (error.code === "gate_failed") onDone(null);
    } finally {
      running = false;
      send.disabled = false;
      input.value = "";
    }
  }

  const zone = h(
    "div",
    { class: "drop", ondragover: hold, ondragleave: leave, ondrop: drop },
    h(
      "p",
      {},
      "Drop an adapter file here, or ",
      h("label", { for: fileId, class: "file" }, "choose one"),
      input,
    ),
    h(
      "p",
      { class: "fine" },
      "A .safetensors file as labelmux train writes it. A refused one changes nothing.",
    ),
  );

  function hold(event) {
    event.preventDefault();
    zone.classList.add("over");
  }
  function leave() {
    zone.classList.remove("over");
  }
  function drop(event) {
    event.preventDefault();
    leave();
    take(event.dataTransfer.files);
  }

  return { element: h("div", { class: "upload" }, name?.element, then?.element, zone, state, send), take };
}

function outcome({ task, version, created, active, gate }) {
  const serves = active ? "is active" : "is stored, not active";
  const scores =
    gate &&
    ` On the gate's ${gate.rows} texts it scores ${score(gate.score)}, version ${gate.active_version} ${score(gate.active_score)}.`;
  return `Version ${version} of ${task} ${created ? "" : "was here already, and "}${serves}.${scores ?? ""}`;
}

function thenField() {
  const id = freshId();
  const select = h(
    "select",
    { id },
    Object.entries(THEN).map(([value, text]) => h("option", { value }, text)),
  );
  return {
    select,
    element: h("p", { class: "field" }, h("label", { for: id }, "Once it is checked"), " ", select),
  };
}

function nameField() {
  const id = freshId();
  const input = h("input", {
    id,
    required: true,
    pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,127}",
    title: "1 to 128 letters, digits, '_', '.', '-'; the first a letter or digit",
    autocomplete: "off",
    spellcheck: "false",
  });
  return {
    input,
    element: h("p", { class: "field" }, h("label", { for: id }, "Name of the new task"), input),
  };
}
