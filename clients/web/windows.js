/** Whether a long text is read in parts, and how. */

import { choice, freshId, h } from "./dom.js";

/**
 * The box and, once it is checked, the settings; `wanted()` is their part of a request. Pairs have no
 * windows.
 */
export function windowsChoice() {
  const [boxId, overlapId, togetherId] = [freshId(), freshId(), freshId()];
  const box = h("input", { type: "checkbox", id: boxId, onchange: show });
  const overlap = h("input", {
    id: overlapId,
    type: "number",
    min: "0",
    max: "32768",
    value: "32",
    required: true,
  });
  const together = h(
    "select",
    { id: togetherId },
    h("option", { value: "mean" }, "mean: what the whole is about"),
    h("option", { value: "max" }, "max: whether any part says so"),
  );
  const settings = h(
    "p",
    { class: "actions start", hidden: true },
    h("span", { class: "choice" }, h("label", { for: overlapId }, "Tokens shared"), overlap),
    h("span", { class: "choice" }, h("label", { for: togetherId }, "Together by"), together),
  );
  const element = choice(box, boxId, "a long text in windows");
  const used = () => box.checked && !element.hidden;

  function show() {
    settings.hidden = !used();
    overlap.disabled = !used();
  }

  show();
  return {
    element,
    settings,
    setPair(isPair) {
      element.hidden = isPair;
      show();
    },
    wanted: () =>
      used()
        ? { windows: { overlap_tokens: Number(overlap.value), aggregation: together.value } }
        : {},
  };
}
