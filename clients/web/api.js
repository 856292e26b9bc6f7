/**
 * The HTTP API, without any DOM. The key lives in this tab alone (sessionStorage) and leaves it only
 * as the Authorization header of requests to the server that the page came from.
 */

const BASE = new URL("../", import.meta.url);
const KEY = "labelmux-key";

/** A refusal: the fields of the server's error body, or code "unreachable". */
class ApiError extends Error {
  constructor(status, code, message, requestId = null) {
    super(message);
    Object.assign(this, { name: "ApiError", status, code, requestId });
  }

  /** Whether another key could change the answer. */
  get wantsKey() {
    return this.status === 401 || ["wrong_scope", "task_forbidden"].includes(this.code);
  }
}

export function storedKey() {
  return sessionStorage.getItem(KEY);
}

export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Asks the person for a key after a refusal; resolves to whether there is a new one. */
let askForKey = async () => false;

export function setKeyAsker(ask) {
  askForKey = ask;
}

/** A task's path below /v1, with the name escaped. */
function taskPath(task, tail = "") {
  return `v1/tasks/${encodeURIComponent(task)}${tail}`;
}

export function url(path) {
  return new URL(path, BASE).href;
}

function headers(more = {}) {
  const key = storedKey();
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

/** What a body of the server says of an error, whatever it is. */
function refusal(status, text, requestId) {
  try {
    const { code, message, request_id } = JSON.parse(text).error;
    return new ApiError(status, String(code), String(message), request_id ?? requestId);
  } catch {
    return new ApiError(status, `http_${status}`, `the server answered ${status}`, requestId);
  }
}

function unreachable() {
  return new ApiError(0, "unreachable", "no answer from the server; is it still running?");
}

/** Runs `attempt`, and again with each new key as long as keys are asked for and given. */
async function withKey(attempt, quiet = false) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      const again = error instanceof ApiError && error.wantsKey && !quiet;
      if (!again || !(await askForKey(error))) throw error;
    }
  }
}

function send(method, path, { body, signal, quiet } = {}) {
  return withKey(async () => {
    let response;
    try {
      response = await fetch(url(path), {
        method,
        signal,
        headers: headers(body === undefined ? {} : { "content-type": "application/json" }),
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: "omit",
        cache: "no-store",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable();
    }
    if (response.ok) return response;
    throw refusal(response.status, await response.text(), response.headers.get("x-request-id"));
  }, quiet);
}

async function json(...args) {
  return (await send(...args)).json();
}

export const info = (options) => json("GET", "v1/info", options);

export function tasks({ search = "", after = "", limit = 100, signal } = {}) {
  const query = new URLSearchParams({ search, after, limit });
  return json("GET", `v1/tasks?${query}`, { signal });
}

export const task = (name) => json("GET", taskPath(name));
export const versions = (name, options) => json("GET", taskPath(name, "/versions"), options);
export const version = (name, number) => json("GET", taskPath(name, `/versions/${number}`));
export const trials = (name, options) => json("GET", taskPath(name, "/trials"), options);
/** `kind` is "shadow" or "canary". */
export const startTrial = (name, kind, body) => json("POST", taskPath(name, `/${kind}`), { body });
export const endTrial = (name, kind) => send("DELETE", taskPath(name, `/${kind}`));
export const activate = (name, version) =>
  json("POST", taskPath(name, "/activate"), { body: { version } });
export const rollback = (name) => json("POST", taskPath(name, "/rollback"));
export const removeTask = (name) => send("DELETE", taskPath(name));
export const removeVersion = (name, version) =>
  send("DELETE", taskPath(name, `/versions/${version}`));

export async function download(name, version) {
  return (await send("GET", taskPath(name, `/adapter?version=${version}`))).blob();
}

/** Answers, and the milliseconds of each stage by its name. */
export async function classify(body, signal) {
  const response = await send("POST", "v1/classify", { body, signal });
  const stages = (response.headers.get("server-timing") ?? "")
    .split(", ")
    .map((part) => part.match(/^(\w+);dur=([\d.]+)$/))
    .filter(Boolean)
    .map(([, name, ms]) => [name, Number(ms)]);
  return { ...(await response.json()), stages_ms: Object.fromEntries(stages) };
}

/** The metrics page; never asks for a key by itself. */
export async function metrics() {
  return (await send("GET", "metrics", { quiet: true })).text();
}

/**
 * Makes a file a version of a task, active as `activate` says: "now", "later" or "gated".
 * `onProgress` gets the share of bytes sent.
 * Resolves to the answer, with `created` false where the task had these bytes already.
 */
export function upload(name, file, { activate, createOnly, onProgress }) {
  return withKey(async () => {
    const sent = {
      "content-type": "application/octet-stream",
      ...(await sha256Header(file)),
      ...(createOnly ? { "if-none-match": "*" } : {}),
    };
    return put(taskPath(name, `/adapter?activate=${activate}`), file, headers(sent), onProgress);
  });
}

/** fetch cannot tell how much of a body is sent; XMLHttpRequest can. */
function put(path, file, sent, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url(path));
    for (const [name, value] of Object.entries(sent)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onerror = () => reject(unreachable());
    request.onload = () => {
      const { status, responseText } = request;
      if (status >= 200 && status < 300)
        resolve({ ...JSON.parse(responseText), created: status === 201 });
      else reject(refusal(status, responseText, request.getResponseHeader("x-request-id")));
    };
    request.send(file);
  });
}

/** Browsers hash in secure contexts only; elsewhere the server's own checks must do. */
async function sha256Header(file) {
  if (!globalThis.crypto?.subtle) return {};
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return {
    "x-content-sha256": Array.from(sum, (byte) => byte.toString(16).padStart(2, "0")).join(""),
  };
}
