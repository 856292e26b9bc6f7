/** Small plots: a line over the last minutes, bars of one moment. */

import { fill, h, svg } from "./dom.js";
import { number } from "./format.js";

const WIDTH = 300;
const HEIGHT = 64;
const LEAST_POINTS = 30;

/** A panel with the newest value, a line, and its words for those who do not see it. */
export function linePanel(title, format) {
  const value = h("output", {}, "–");
  const peak = h("span", { class: "fine" });
  const lines = svg("g");
  const plot = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    lines,
  );
  const element = h(
    "figure",
    { class: "panel" },
    h("figcaption", {}, h("span", {}, title), value),
    plot,
    peak,
  );

  /** `series`: arrays of values or null, oldest first; the first one is named and filled. */
  function show(...series) {
    const [first] = series;
    const known = first.filter((item) => item !== null);
    const top = Math.max(...series.flat().filter((item) => item !== null), 0);
    const newest = known.at(-1) ?? null;
    value.textContent = newest === null ? "–" : format(newest);
    peak.textContent = known.length ? `peak ${format(top)}` : "no traffic yet";
    plot.setAttribute("aria-label", `${title}: ${value.textContent} now, ${peak.textContent}`);
    fill(
      lines,
      series.map((items, at) => line(items, top || 1, at)),
    );
  }

  return { element, show };
}

/** A line without a panel, as in the header. */
export function sparkline() {
  const lines = svg("g");
  const element = svg(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
    },
    lines,
  );
  return { element, show: (items) => fill(lines, line(items, Math.max(...items, 0) || 1, 0)) };
}

/** The newest value stands at the right; a young line does not fill the width. */
function line(items, top, at) {
  const step = WIDTH / (Math.max(items.length, LEAST_POINTS) - 1);
  const start = WIDTH - (items.length - 1) * step;
  const paths = [];
  let current = [];
  items.forEach((item, place) => {
    if (item === null) current = [];
    else {
      if (current.length === 0) paths.push(current);
      current.push([
        (start + place * step).toFixed(1),
        (HEIGHT - 2 - (item / top) * (HEIGHT - 6)).toFixed(1),
      ]);
    }
  });
  return paths.map((path) => {
    const points = path.map(([x, y]) => `${x},${y}`).join(" L");
    const drawn = svg("path", {
      class: `line line-${at}`,
      d: path.length === 1 ? `M${points} h0.1` : `M${points}`,
    });
    if (at > 0) return drawn;
    const area = `M${path[0][0]},${HEIGHT} L${points} L${path.at(-1)[0]},${HEIGHT} Z`;
    return [svg("path", { class: "area", d: area }), drawn];
  });
}

/** Bars by name: `[[name, count]]`. */
export function barPanel(title) {
  const list = h("ol", { class: "columns-plot" });
  const none = h("span", { class: "fine" });
  const element = h(
    "figure",
    { class: "panel" },
    h("figcaption", {}, h("span", {}, title)),
    list,
    none,
  );

  function show(bars) {
    const top = Math.max(...bars.map(([, count]) => count), 0);
    none.textContent = top === 0 ? "no batch in the last minutes" : `most: ${number(Math.round(top))}`;
    fill(
      list,
      bars.map(([name, count]) => {
        const bar = h("span", { class: "column", "aria-hidden": "true" });
        bar.style.setProperty("--share", top ? count / top : 0);
        return h(
          "li",
          {},
          bar,
          h("span", {}, name),
          h("span", { class: "unseen" }, `: ${Math.round(count)}`),
        );
      }),
    );
  }

  return { element, show };
}
