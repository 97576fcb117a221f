/** One session on /v1/realtime: OpenAI's Realtime events as JSON. A session is one conversation. */

const WHY_CLOSED = {
  1001: "The server is shutting down.",
  1006: "The connection was lost.",
  1008: "The server closed the session.",
  1011: "The server closed the session after a failure of its own.",
  1012: "The server is restarting.",
  1013: "The server is too busy: try again later.",
};

let requests = 0;

/** The error of a session that ended, from the words of its end. */
export const endOf = (words) => new Error(`${words} The next message begins a new session.`);

export class Realtime {
  /**
   * Connects; fulfilled when the session is there.
   *
   * @param {string} key  API key, or "".
   * @param {(event: object) => void} onEvent  gets every event of the server but errors that answer a `request`.
   * @param {(words: string) => void} onClose  called once when a session that was there ends, unless by us.
   */
  static open(key, onEvent, onClose) {
    const address = new URL("/v1/realtime", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    let socket;
    try {
      socket = new WebSocket(address, protocols);
    } catch {
      return Promise.reject(new Error("This API key has characters that no key has."));
    }
    return new Promise((resolve, reject) => {
      const session = new Realtime(socket);
      let error = ""; // the last event, where it was one
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "session.created") {
          session.isThere = true;
          resolve(session);
        }
        error = event.type === "error" ? event.error.message : "";
        if (session.isThere && !session.answers(event)) onEvent(event);
      };
      socket.onclose = ({ code }) => {
        const words = error || WHY_CLOSED[code] || `The connection ended (${code}).`;
        const wasThere = session.isThere;
        session.end(endOf(words));
        if (wasThere) onClose(words);
        else if (code === 1006 && !error) whyRefused(key).then((why) => reject(new Error(why)));
        else reject(new Error(words));
      };
    });
  }

  constructor(socket) {
    this.socket = socket;
    this.isThere = false;
    this.requests = new Map(); // by id of the event, the oldest first
  }

  send(event) {
    if (this.isThere) this.socket.send(JSON.stringify(event));
  }

  /**
   * Sends an event; fulfilled once the server has done it. Fails if the server refuses it, or the session ends.
   *
   * @param {object} event  without an id.
   * @param {string} done  Type of the event that says so. Events are done in their order: the oldest one waits for it.
   */
  request(event, done) {
    const event_id = `request_${++requests}`;
    return new Promise((resolve, reject) => {
      if (!this.isThere) return reject(this.why);
      this.requests.set(event_id, { done, item: event.item?.id, resolve, reject });
      this.send({ ...event, event_id });
    });
  }

  /** Sends settings that differ from the latest ones; fulfilled once the server has taken them. */
  update(settings) {
    const text = JSON.stringify(settings);
    if (text !== this.settings) {
      this.settings = text;
      this.updated = this.request({ type: "session.update", session: settings }, "session.updated");
      this.updated.catch(() => (this.settings = "")); // to be sent again
    }
    return this.updated;
  }

  /** Whether an event is the error that answers a request; one that says that a request is done is for all. */
  answers({ type, error, item }) {
    if (type === "error") {
      this.requests.get(error.event_id)?.reject(new Error(error.message));
      return this.requests.delete(error.event_id);
    }
    for (const [id, request] of this.requests) {
      if (request.done !== type || (request.item && request.item !== item?.id)) continue;
      this.requests.delete(id);
      request.resolve();
      break;
    }
    return false;
  }

  /** Ends the session; nothing comes of it from now on. */
  close() {
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close(1000);
    this.end(new Error("The session was closed."));
  }

  end(error) {
    this.isThere = false;
    this.why = error;
    for (const { reject } of this.requests.values()) reject(error);
    this.requests.clear();
  }
}

/** Scripts see no reason of a refused websocket: the same server is asked by HTTP. */
async function whyRefused(key) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch("v1/models", { headers }).catch(() => null);
  if (!answer) return "The server does not answer: is it running?";
  if (answer.ok) return "The server answers, but not by websocket: a proxy before it has to pass them on.";
  if (answer.status === 401) return "The API key is not the server's: enter it in the settings.";
  const body = await answer.json().catch(() => null);
  return `The server refused the connection: ${body?.error?.message ?? `status ${answer.status}`}`;
}
