/** The server's metrics over the last minutes, read while this page is in front. */

import * as api from "./api.js";
import { added, buckets, parse, quantile, total } from "./exposition.js";

const EVERY_MS = 2000;
const KEPT = 150;

/** What is asked to look after a server, and not to use it. */
const OWN =
  /^(\/|\/console\/.*|\/metrics|\/docs|\/openapi\.json|(\/v2)?\/health(\/.*)?|\/v1\/info|unmatched)$/;
/** What answers at once; a stream takes as long as its caller has lines. */
const ASKED = /\/(classify|predict|infer)$/;

const watchers = new Set();
const readings = [];

/** Rates, quantiles and gauges of each interval, oldest first. */
export const points = [];

/** Why there is nothing to show: null, or the last refusal. */
export let refused = null;

let timer = null;
let reading = null;

/** Calls `listener` after each reading; returns what ends that. */
export function watch(listener) {
  watchers.add(listener);
  if (points.length || refused) listener();
  return () => watchers.delete(listener);
}

/** Reads at once, and again from now on; a refusal that wants a key ends that. */
export function tick() {
  clearTimeout(timer);
  if (document.hidden) return;
  reading ??= read().finally(() => {
    reading = null;
    if (!refused?.wantsKey) timer = setTimeout(tick, EVERY_MS);
  });
}

async function read() {
  try {
    const samples = parse(await api.metrics());
    readings.push({ at_ms: performance.now(), samples });
    if (readings.length > 2) readings.shift();
    if (readings.length === 2) points.push(point(...readings));
    if (points.length > KEPT) points.shift();
    refused = null;
  } catch (error) {
    refused = error;
    readings.length = 0;
  }
  for (const listener of watchers) listener();
}

function point(before, after) {
  const interval_s = (after.at_ms - before.at_ms) / 1000;
  const rate = (name, accept) =>
    Math.max(total(after.samples, name, accept) - total(before.samples, name, accept), 0) /
    interval_s;
  const grown = (name, accept) =>
    added(buckets(before.samples, name, accept), buckets(after.samples, name, accept));
  const used = ({ route }) => !OWN.test(route);
  const latency = grown("labelmux_request_duration_seconds", ({ route }) => ASKED.test(route));
  const waits = grown("labelmux_queue_wait_seconds");
  const gauge = (name) => total(after.samples, name);
  return {
    at: new Date(),
    requests_per_s: rate("labelmux_requests_total", used),
    answers_per_s: rate("labelmux_rows_total"),
    tokens_per_s: rate("labelmux_encoder_tokens_total"),
    encoder_rows_per_s: rate("labelmux_encoder_rows_total"),
    cache_hits_per_s: rate("labelmux_feature_cache_hits_total"),
    refusals_per_s: rate("labelmux_rejected_total"),
    p50_s: quantile(latency, 0.5),
    p95_s: quantile(latency, 0.95),
    wait_p95_s: quantile(waits, 0.95),
    batches: grown("labelmux_batch_encoder_rows"),
    queue_tokens: gauge("labelmux_queue_tokens"),
    tasks: gauge("labelmux_tasks"),
    resident_adapters: gauge("labelmux_resident_adapters"),
    resident_bytes: gauge("labelmux_resident_bytes"),
    cache_bytes: gauge("labelmux_feature_cache_bytes"),
  };
}

/** Refusals since the server started, by code, most first. */
export function refusals() {
  return (readings.at(-1)?.samples.get("labelmux_rejected_total") ?? [])
    .map(({ labels, value }) => ({ code: labels.code, count: value }))
    .filter(({ count }) => count > 0)
    .sort((a, b) => b.count - a.count);
}

/** Answers per second, and since the start, by task. */
export const trafficByTask = () => traffic("task", () => true);

/** The same by version of one task. */
export const trafficByVersion = (task) => traffic("version", (labels) => labels.task === task);

/**
 * What the versions of a task did: answers per second now; since the server started, the median and
 * 95 % quantile of their calls' time, and how many of their calls were refused.
 */
export function versionsOf(task) {
  const samples = readings.at(-1)?.samples;
  const found = trafficByVersion(task);
  for (const [version, entry] of found) {
    const own = (labels) => labels.task === task && labels.version === version;
    const failed = (labels) => own(labels) && labels.code !== "ok";
    const times = added([], buckets(samples, "labelmux_task_duration_seconds", own));
    entry.p50_s = quantile(times, 0.5);
    entry.p95_s = quantile(times, 0.95);
    entry.refused = total(samples, "labelmux_task_requests_total", failed);
  }
  return found;
}

function traffic(label, accept) {
  const found = new Map();
  if (readings.length < 2) return found;
  const [before, after] = readings;
  const interval_s = (after.at_ms - before.at_ms) / 1000;
  const add = ({ samples }, sign) => {
    for (const { labels, value } of samples.get("labelmux_task_rows_total") ?? []) {
      if (!accept(labels)) continue;
      const entry = found.get(labels[label]) ?? { total: 0, per_s: 0 };
      if (sign > 0) entry.total += value;
      entry.per_s += (sign * value) / interval_s;
      found.set(labels[label], entry);
    }
  };
  add(after, 1);
  add(before, -1);
  return found;
}
