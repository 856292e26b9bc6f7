/** What the page says: notices, refusals, questions. */

import { fill, freshId, h } from "./dom.js";

/** A sentence that screen readers speak too; gone after a while. */
export function notice(text) {
  const place = document.getElementById("notice");
  fill(place, text);
  place.classList.add("shown");
  clearTimeout(place.timer);
  place.timer = setTimeout(() => place.classList.remove("shown"), 6000);
}

/** A refusal in full: what is wrong, its code, and the id that finds it in the server's log. */
export function problem(error) {
  const code = error.code ?? "console";
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", {}, sentence(error.message)),
    h(
      "p",
      { class: "fine" },
      h("code", {}, code),
      error.requestId ? [" · request ", h("code", {}, error.requestId)] : null,
    ),
  );
}

function sentence(text) {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

/** A modal dialog; resolves to what `close(value)` was called with, or null on Escape. */
export function ask(title, content) {
  return new Promise((resolve) => {
    const id = freshId();
    const opener = document.activeElement;
    const dialog = h("dialog", { "aria-labelledby": id });
    let answer = null;
    const close = (value) => {
      answer = value;
      dialog.close();
    };
    dialog.append(h("h2", { id }, title), content(close));
    dialog.addEventListener("close", () => {
      dialog.remove();
      opener?.focus?.();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Whether a change that cannot be undone is wanted. */
export function confirm(title, text, verb) {
  return ask(title, (close) =>
    h(
      "div",
      {},
      h("p", {}, text),
      h(
        "p",
        { class: "actions" },
        h("button", { type: "button", autofocus: true, onclick: () => close(false) }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: () => close(true) }, verb),
      ),
    ),
  );
}
