/** One session on /v1/realtime: OpenAI's Realtime events as JSON. A session is one conversation. */

const WHY_CLOSED = {
  1001: "The server is shutting down.",
  1006: "The connection was lost.",
  1008: "The server closed the session.",
  1011: "The server closed the session after a failure of its own.",
  1012: "The server is restarting.",
  1013: "The server is too busy: try again later.",
};

export class Realtime {
  /**
   * Connects; fulfilled when the session is there.
   *
   * @param {string} key  API key, or "".
   * @param {(event: object) => void} onEvent  gets every event of the server.
   * @param {(words: string) => void} onClose  called once when a session that was there ends; "" if by us.
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
        if (session.isThere) onEvent(event);
      };
      socket.onclose = ({ code }) => {
        const words = error || WHY_CLOSED[code] || `The connection ended (${code}).`;
        if (session.isThere) onClose(session.isClosing ? "" : words);
        else if (code === 1006 && !error) whyRefused(key).then((why) => reject(new Error(why)));
        else reject(new Error(words));
        session.isThere = false;
      };
    });
  }

  constructor(socket) {
    this.socket = socket;
    this.isThere = this.isClosing = false;
  }

  send(event) {
    if (this.isThere) this.socket.send(JSON.stringify(event));
  }

  close() {
    this.isClosing = true;
    this.socket.close(1000);
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
