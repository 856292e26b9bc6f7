/** Puts the page together: which view stands where, the header, the key. */

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { number, plural, seconds } from "./format.js";
import { askForKey, keyButton, showKey } from "./key.js";
import { liveView } from "./live.js";
import { problem } from "./messages.js";
import { sparkline } from "./plots.js";
import * as pulse from "./pulse.js";
import { taskView } from "./task.js";
import { tasksView } from "./tasks.js";
import { tryView } from "./try.js";

const SPARK_POINTS = 60;

const about = document.getElementById("about");
const main = document.getElementById("main");
let server = null;
let leave = null;
let first = true;

function route() {
  const place = location.hash || "#/";
  if (!place.startsWith("#/")) return;
  const [path, query = ""] = place.slice(2).split("?");
  const [section, escaped] = path.split("/");
  const name = escaped && plain(escaped);
  leave?.();
  fill(main);
  leave = show(section, name, new URLSearchParams(query)) ?? null;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#/${section}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = main.querySelector("h1");
  document.title = `${name || title?.textContent.trim() || "Console"} · labelmux`;
  window.scrollTo(0, 0);
  if (!first) title?.focus({ preventScroll: true });
  first = false;
}

function plain(escaped) {
  try {
    return decodeURIComponent(escaped);
  } catch {
    return escaped;
  }
}

function show(section, name, query) {
  if (section === "tasks") return name ? taskView(main, server, name) : tasksView(main, server);
  if (section === "live") return liveView(main);
  return tryView(main, query);
}

function header() {
  const spark = sparkline();
  const words = h("span");
  const lost = h("span", { class: "lost", role: "alert" });
  fill(document.getElementById("pulse"), spark.element, words, lost);
  pulse.watch(() => {
    const gone = pulse.refused?.code === "unreachable";
    if (gone !== Boolean(lost.textContent))
      lost.textContent = gone ? "no answer from the server" : "";
    const point = pulse.points.at(-1);
    if (!point || pulse.refused) return fill(words);
    spark.show(pulse.points.slice(-SPARK_POINTS).map(({ answers_per_s }) => answers_per_s));
    const latency = point.p50_s === null ? "" : ` · median ${seconds(point.p50_s)}`;
    fill(words, `${number(point.answers_per_s)} answers/s${latency}`);
  });
}

/** Learns what the server is, and shows the view, or that there is none without a key. */
async function meet() {
  try {
    server = await api.info();
  } catch (error) {
    fill(main, problem(error), keyButton(error, meet));
    return;
  }
  const { encoder } = server;
  const size = `${encoder.layers} layers, width ${encoder.hidden_size}, ${number(encoder.parameters / 1e6)} M parameters`;
  fill(
    about,
    `labelmux ${server.version} · encoder ${encoder.name}: ${size} · ${plural(server.tasks, "task")}`,
  );
  document.getElementById("docs").hidden = server.access === "key";
  showKey(server.key);
  pulse.tick();
  route();
}

async function nameKey() {
  try {
    showKey((await api.info({ quiet: true })).key);
  } catch {
    showKey();
  }
}

function begin() {
  api.setKeyAsker(async (refused) => {
    const given = await askForKey(refused);
    if (given) {
      pulse.tick();
      nameKey();
    }
    return given;
  });
  document.getElementById("key").addEventListener("click", async () => {
    if (await askForKey()) meet();
  });
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  document.addEventListener("visibilitychange", pulse.tick);
  window.addEventListener("hashchange", () => server && route());
  showKey();
  header();
  meet();
}

begin();
