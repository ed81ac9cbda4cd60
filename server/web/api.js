// The server, as every client calls it. The key, where one is asked for, stays in this tab.

const KEY = "thumbwheel.key";
const TRIES = 3;

/** What the server said, or that it said nothing (status 0). */
export class ApiError extends Error {
  constructor(message, status, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const keptKey = () => sessionStorage.getItem(KEY) || "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

let asksForKey = () => {};

/** Calls `listener` whenever the server wants a key, or another one. */
export function whenKeyIsNeeded(listener) { asksForKey = listener; }

async function call(method, path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (keptKey()) headers.authorization = `Bearer ${keptKey()}`;
  let response;
  try {
    const sent = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, headers, body: sent, signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) asksForKey();
  const told = await response.json().catch(() => null);
  const words = told?.error?.message || `The server answered with status ${response.status}.`;
  throw new ApiError(words, response.status, Number(response.headers.get("retry-after")) || 0);
}

export const get = async (path) => (await call("GET", path)).json();
export const post = async (path, body) => (await call("POST", path, body)).json();

/** Casts a vote, or takes one back. Repeated with the same key where it may have been lost: it counts once. */
export async function vote(method, body) {
  const keyed = { ...body, idempotency_key: newKey() };
  for (let attempt = 1; ; attempt++) {
    try {
      return await (await call(method, "/v1/feedback", keyed)).json();
    } catch (error) {
      if (!(error instanceof ApiError) || ![0, 503].includes(error.status) || attempt === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.max(attempt, error.retryAfter)));
    }
  }
}

/** The chunks of an answer as they come. Ends without an error only where the server said that it was the end. */
export async function* chat(messages, n, signal) {
  const body = { model: "thumbwheel", messages, n, stream: true };
  const response = await call("POST", "/v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The answer broke off.", 0);
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, 500);
        yield chunk;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The answer broke off.", 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
