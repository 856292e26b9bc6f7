/** Which tasks shall read the text: all, or some, found by name among any number. */

import * as api from "./api.js";
import { fill, freshId, h, settled } from "./dom.js";
import { number } from "./format.js";
import { problem } from "./messages.js";

/** More than this many tasks are not asked at once from here. */
const MAX_ALL = 50;
const PAGE = 100;

/** A picker; `element` to be shown, `names()` what to ask, `refresh()` after tasks changed. */
export function picker() {
  const chosen = new Set();
  const state = { all: true, total: 0, pair: false };
  const list = h("ul", { class: "picks" });
  const chips = h("ul", { class: "chips" });
  const [allId, someId, searchId] = [freshId(), freshId(), freshId()];
  const group = freshId();
  const all = h("input", { type: "radio", id: allId, name: group, onchange: () => choose(true) });
  const some = h("input", {
    type: "radio",
    id: someId,
    name: group,
    onchange: () => choose(false),
  });
  const allLabel = h("label", { for: allId });
  const someLabel = h("label", { for: someId });
  const search = h("input", {
    id: searchId,
    type: "search",
    placeholder: "Find a task",
    "aria-label": "Find a task",
    oninput: settled(() => refresh(), 150),
  });
  let asked = null;

  function choose(wantsAll) {
    state.all = wantsAll && state.total <= MAX_ALL;
    show();
  }

  function toggle(name, on) {
    if (on) chosen.add(name);
    else chosen.delete(name);
    choose(chosen.size === 0);
  }

  function show() {
    all.disabled = state.total > MAX_ALL;
    all.checked = state.all;
    some.checked = !state.all;
    fill(
      allLabel,
      all.disabled ? `All ${number(state.total)}: too many at once` : "All that fit the input",
    );
    fill(someLabel, chosen.size ? `Chosen (${chosen.size})` : "Chosen");
    fill(chips, state.all ? [] : [...chosen].map(chip));
    for (const box of list.querySelectorAll("input"))
      box.checked = !state.all && chosen.has(box.value);
  }

  function chip(name) {
    const drop = () => {
      toggle(name, false);
      search.focus();
    };
    const label = `Leave out ${name}`;
    return h(
      "li",
      {},
      name,
      h("button", { type: "button", "aria-label": label, onclick: drop }, "×"),
    );
  }

  function pick(task) {
    const id = freshId();
    const box = h("input", {
      type: "checkbox",
      id,
      value: task.task,
      onchange: (event) => toggle(task.task, event.target.checked),
    });
    const kind = task.pair ? h("span", { class: "fine" }, "pair") : null;
    return h(
      "li",
      { class: task.pair === state.pair ? "" : "unfit" },
      box,
      h("label", { for: id }, task.task),
      kind,
    );
  }

  async function refresh() {
    asked?.abort();
    asked = new AbortController();
    try {
      const wanted = { search: search.value.trim(), limit: PAGE, signal: asked.signal };
      const found = await api.tasks(wanted);
      const hidden = (found.total ?? found.tasks.length) - found.tasks.length;
      if (!wanted.search) state.total = found.total ?? found.tasks.length;
      fill(
        list,
        found.tasks.map(pick),
        hidden > 0 ? h("li", { class: "fine" }, `${number(hidden)} more: search by name`) : null,
        found.tasks.length === 0 ? h("li", { class: "fine" }, "No task of that name") : null,
      );
      choose(state.all && chosen.size === 0);
    } catch (error) {
      if (error.name !== "AbortError") fill(list, h("li", {}, problem(error)));
    }
  }

  const element = h(
    "fieldset",
    { class: "picker" },
    h("legend", {}, "Tasks"),
    h("p", { class: "choice" }, all, allLabel),
    h("p", { class: "choice" }, some, someLabel),
    chips,
    search,
    list,
  );

  return {
    element,
    refresh,
    names: () => (state.all ? ["*"] : [...chosen]),
    /** Chooses exactly these; a name may carry a version, as `task@2`. */
    choose(names) {
      chosen.clear();
      for (const name of names) chosen.add(name);
      choose(chosen.size === 0);
    },
    setPair(pair) {
      state.pair = pair;
      refresh();
    },
  };
}
