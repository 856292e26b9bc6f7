/**
 * Elements. A string becomes a text node and nothing else, so that no name, label or message that a
 * server sends can be markup.
 */

/** An element of HTML; `props` are attributes, and listeners where the name starts with "on". */
export function h(tag, props = {}, ...children) {
  return build(document.createElement(tag), props, children);
}

/** An element of SVG. */
export function svg(tag, props = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

/** Replaces what `node` holds. */
export function fill(node, ...children) {
  node.replaceChildren(...nodes(children));
  return node;
}

function build(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...nodes(children));
  return node;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child != null && child !== false);
}

/** A box or a radio with its words behind it. */
export function choice(input, id, text) {
  return h("span", { class: "choice" }, input, h("label", { for: id }, text));
}

let ids = 0;

/** An id that no other element has. */
export function freshId() {
  ids += 1;
  return `id-${ids}`;
}

/** Calls `work` once `wait_ms` have passed without another call. */
export function settled(work, wait_ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), wait_ms);
  };
}
