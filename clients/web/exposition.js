/** Prometheus text: reading it, and what counters and histograms did between two readings. */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Samples by metric name: `[{labels, value}]`. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : line.match(LINE);
    if (!match) continue;
    const [, name, inside, value] = match;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels: labelsOf(inside ?? ""), value: numberOf(value) });
  }
  return found;
}

function labelsOf(inside) {
  const labels = {};
  for (const [, name, value] of inside.matchAll(LABEL))
    labels[name] = value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
  return labels;
}

function numberOf(text) {
  if (text === "+Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

/** The sum of a metric's samples that `accept` takes; 0 where there is none. */
export function total(samples, name, accept = () => true) {
  return (samples.get(name) ?? [])
    .filter(({ labels }) => accept(labels))
    .reduce((sum, { value }) => sum + value, 0);
}

/** A histogram as `[[upper bound, count up to it]]`, by bound, summed over its other labels. */
export function buckets(samples, name, accept = () => true) {
  const counts = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
    if (!accept(labels)) continue;
    const bound = numberOf(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort(([a], [b]) => a - b);
}

/** What was added to a histogram between two readings, as counts per bucket. */
export function added(before, after) {
  const earlier = new Map(before);
  let below = 0;
  return after.map(([bound, count]) => {
    const grown = Math.max(count - (earlier.get(bound) ?? 0), 0);
    const own = Math.max(grown - below, 0);
    below = Math.max(grown, below);
    return [bound, own];
  });
}

/** The `share` quantile of counts per bucket, linear within one; null where nothing was counted. */
export function quantile(counts, share) {
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  if (all === 0) return null;
  let passed = 0;
  let lower = 0;
  for (const [bound, count] of counts) {
    if (passed + count >= share * all) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (share * all - passed)) / count;
    }
    passed += count;
    lower = bound;
  }
  return lower;
}
