// Server-sent events over fetch: EventSource cannot send the key that a public listener asks for.

const RETRY_MS = 2000;
const ANSWER_MS = 30000; // then nothing comes any more: the way to the server may have gone without a word
const SILENT_MS = 20000; // the server says something every 15 s

export class Refused extends Error {
  constructor(status, problem) {
    super((problem && (problem.message || problem.detail)) || `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

export function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// An answer's JSON. Throws Refused; and another error where it did not come, not whole or not in time.
async function asked(path, options) {
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(ANSWER_MS) });
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  return answer.json();
}

export function getJson(path, key) {
  return asked(path, { headers: headers(key), cache: "no-store" });
}

export function postJson(path, body, key) {
  return asked(path, { method: "POST", headers: { "Content-Type": "application/json", ...headers(key) }, body: JSON.stringify(body) });
}

// Calls onMessage(topic, value) and onState("connecting" | "live" | "lost" | "key") until stopped.
export class Stream {
  constructor(path, { key, onMessage, onState }) {
    Object.assign(this, { path, key, onMessage, onState, stopped: false });
    this.run();
  }

  stop() {
    this.stopped = true;
    if (this.abort) this.abort.abort();
  }

  async run() {
    let state = "connecting";
    while (!this.stopped) {
      this.onState(state);
      try {
        await this.read();
        state = "lost";
      } catch (error) {
        state = error.status === 401 || error.status === 403 ? "key" : "lost";
      }
      if (this.stopped) return;
      this.onState(state);
      if (state === "key") return;
      await new Promise((wake) => setTimeout(wake, RETRY_MS));
    }
  }

  async read() {
    this.abort = new AbortController();
    let watchdog = setTimeout(() => this.abort.abort(), SILENT_MS);
    try {
      const answer = await fetch(this.path, {
        headers: headers(this.key), cache: "no-store", signal: this.abort.signal,
      });
      if (this.stopped) return;
      if (!answer.ok) throw new Refused(answer.status, null);
      this.onState("live");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let held = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => this.abort.abort(), SILENT_MS);
        held += value;
        const messages = held.split("\n\n");
        held = messages.pop();
        messages.forEach((message) => this.tryTake(message));
      }
    } finally {
      clearTimeout(watchdog);
      this.abort.abort(); // else what went wrong here leaves a connection that nobody reads
    }
  }

  // What one message does wrong costs that message and no other.
  tryTake(message) {
    try {
      this.take(message);
    } catch (error) {
      console.error("a message of the stream was not taken", error);
    }
  }

  take(message) {
    let topic = null;
    let data = "";
    for (const line of message.split("\n")) {
      if (line.startsWith("event: ")) topic = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (topic) this.onMessage(topic, JSON.parse(data));
  }
}
