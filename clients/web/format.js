/** Numbers, sizes and times as people read them. */

import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const moment = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium" });

/** 1234.5 as "1,235"; below ten one decimal, below one two. */
export function number(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 10) return whole.format(value);
  return value.toFixed(size >= 1 ? 1 : 2);
}

/** A probability or a metric in three decimals; a count as it is. */
export function score(value) {
  return Number.isInteger(value) && Math.abs(value) > 1 ? whole.format(value) : value.toFixed(3);
}

/** A share as "97.3 %"; only a whole one is "100 %". */
export function percent(share) {
  const text = (100 * share).toFixed(1);
  return `${text === "100.0" && share < 1 ? "99.9" : text.replace(/\.0$/, "")} %`;
}

export function bytes(value) {
  if (value < 1024) return `${whole.format(value)} B`;
  const units = ["KiB", "MiB", "GiB"];
  let unit = -1;
  do {
    value /= 1024;
    unit += 1;
  } while (value >= 1024 && unit < units.length - 1);
  return `${value < 10 ? value.toFixed(1) : whole.format(value)} ${units[unit]}`;
}

export function seconds(value) {
  if (value >= 1) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const ms = value * 1000;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

export function plural(count, noun) {
  return `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** A moment as "3 min. ago"; its exact time is the tooltip. */
export function ago(text) {
  const at = new Date(text);
  const past_s = (Date.now() - at.getTime()) / 1000;
  const [size_s, unit] = [
    [86400, "day"],
    [3600, "hour"],
    [60, "minute"],
    [1, "second"],
  ].find(([size_s]) => past_s >= size_s) ?? [1, "second"];
  const shown = relative.format(-Math.floor(past_s / size_s), unit);
  return h("time", { datetime: text, title: moment.format(at) }, shown);
}

/** The part of a digest that tells two apart at a glance. */
export function digest(text) {
  return h("code", { title: text }, text.replace("sha256:", "").slice(0, 12));
}
