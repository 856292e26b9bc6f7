/** The access key: asked for when the server refuses, kept in this tab. */

import { storeKey, storedKey } from "./api.js";
import { freshId, h } from "./dom.js";
import { ask, notice, problem } from "./messages.js";

let open = null;

/** Asks for a key; `refused` is the answer that made it necessary, if one did. One dialog at a time. */
export function askForKey(refused = null) {
  open ??= ask("Access key", (close) => form(refused, close)).finally(() => {
    open = null;
    showKey();
  });
  return open.then(Boolean);
}

/** A button that asks for a key and then calls `done`; null where no key would help. */
export function keyButton(refused, done) {
  const enter = async () => {
    if (await askForKey(refused)) done();
  };
  return refused.wantsKey ? h("button", { type: "button", onclick: enter }, "Enter a key") : null;
}

/** Shows on the header's button whether this tab holds a key, and which if the server said so. */
export function showKey(known = null) {
  const button = document.getElementById("key");
  button.textContent = storedKey() ? `Key: ${known?.name ?? "set"}` : "Key";
  button.title = known ? `for ${known.scopes.join(", ")}` : "";
  button.classList.toggle("set", Boolean(storedKey()));
}

function form(refused, close) {
  const id = freshId();
  const input = h("input", {
    id,
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    pattern: "[!-~]+",
    title: "Letters, digits and signs as a header can carry them",
    required: true,
    autofocus: true,
  });
  const save = (event) => {
    event.preventDefault();
    if (!input.value.trim()) return;
    storeKey(input.value.trim());
    close(true);
  };
  const forget = () => {
    storeKey(null);
    notice("The key is forgotten.");
    close(false);
  };
  return h(
    "form",
    { onsubmit: save },
    refused ? problem(refused) : null,
    h("label", { for: id }, refused && storedKey() ? "Another key" : "Key"),
    input,
    h("p", { class: "fine" }, "It stays in this tab and is gone when the tab closes."),
    h(
      "p",
      { class: "actions" },
      storedKey() ? h("button", { type: "button", onclick: forget }, "Forget key") : null,
      h("button", { type: "button", onclick: () => close(false) }, "Cancel"),
      h("button", { class: "primary" }, "Use key"),
    ),
  );
}
