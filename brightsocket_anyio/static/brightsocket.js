// @ts-check
/**
 * Brightsocket for browsers: one ES module, no build step, no dependencies.
 *
 *     import brightsocket from "./brightsocket.js";
 *
 *     const client = brightsocket();                            // this page's server; or brightsocket("https://example.org")
 *     client.receive("LOGGED_IN", ({ userType, token }) => client.connect(userType, { token }));
 *     await client.connect("GUEST", { username, password });    // rejects with Refused, and the server's reason
 *     client.send("MESSAGE", "hello");
 *     const users = await client.call("LIST_USERS");
 *
 * A client is on one channel at a time. `connect` ends the session on the old channel, waits until it is over, and only then
 * opens the new one. Receivers are put on the client, and stay over a switch.
 *
 * The wire, from the bottom: WebSocket messages carry Engine.IO 4 packets, which carry Socket.IO protocol 5 packets.
 *   - Engine.IO: a text message is a type digit and its data: 0 open, 1 close, 2 ping, 3 pong, 4 message (5 and 6 belong to
 *     polling). The server pings, the client answers. A binary message is an attachment, without a digit.
 *   - Socket.IO, inside type 4: `<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]`; the namespace `/` is left out. Types:
 *     0 CONNECT, 1 DISCONNECT, 2 EVENT, 3 ACK, 4 CONNECT_ERROR, and 5 and 6, an EVENT or an ACK with attachments. In their
 *     JSON `{"_placeholder":true,"num":0}` stands for the first attachment; the attachments follow, in order.
 *   - Brightsocket: a channel is picked by the event BRIGHTSOCKET:IDENTIFY on the namespace `/`, and answered by
 *     BRIGHTSOCKET:IDENTIFIED or BRIGHTSOCKET:REFUSED. BRIGHTSOCKET:CLOSED says why a connection ends later. A channel whose
 *     name begins with a slash is a Socket.IO namespace: its identity travels in the CONNECT packet.
 */

const CHANNEL = "BRIGHTSOCKET:CHANNEL";
const IDENTIFY = "BRIGHTSOCKET:IDENTIFY";
const IDENTIFIED = "BRIGHTSOCKET:IDENTIFIED";
const REFUSED = "BRIGHTSOCKET:REFUSED";
const CLOSED = "BRIGHTSOCKET:CLOSED";

/** Event names that Socket.IO keeps for itself. */
const RESERVED = new Set(["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]);

/** Milliseconds: for the server to say something at first; for a WebSocket to close in good order. */
const OPEN_TIMEOUT = 20_000;
const CLOSE_TIMEOUT = 5_000;

const PACKET = /^([0-6])(?:(\d{1,4})-)?(?:(\/[^,]*),?)?(\d{1,15})?(.*)$/s;

/** The server turned this client away: it is on no channel now. */
export class Refused extends Error {
  /**
   * @param {string} channel
   * @param {string} reason
   * @param {unknown} [data] what a Socket.IO server may send beside the reason
   */
  constructor(channel, reason, data) {
    super(reason);
    this.name = "Refused";
    this.channel = channel;
    this.reason = reason;
    this.data = data;
  }
}

/** A connection is over, or there was none. `code` is a word for programs, the message a sentence. */
export class Disconnected extends Error {
  /**
   * @param {string} code
   * @param {string} reason
   */
  constructor(code, reason) {
    super(reason);
    this.name = "Disconnected";
    this.code = code;
    this.reason = reason;
  }
}

/**
 * @param {string} [location] the server's URL; left out, the page's own server
 * @param {{path?: string}} [options] where the API is on the server; `/socket.io/` unless it says otherwise
 */
export default function brightsocket(location, options) {
  return new Client(location, options);
}

export class Client {
  #url;
  /** @type {Map<string, Set<Function>>} */
  #receivers = new Map();
  /** @type {Session | null} the newest; an older one is over before it is made */
  #session = null;
  #wish = 0; // counts connect and disconnect: the newest wins

  /** @param {string} [location] @param {{path?: string}} [options] */
  constructor(location = globalThis.location?.origin, { path = "/socket.io/" } = {}) {
    const url = new URL(path, location);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = "?EIO=4&transport=websocket";
    this.#url = url.href;
  }

  /**
   * Called when a connection ends that neither `connect` nor `disconnect` ended: lost, or ended by the server.
   * @type {((end: Disconnected) => void) | null}
   */
  onclose = null;

  /** The channel that the server has let this client in to, or null. */
  get channel() {
    return this.#session?.open ? this.#session.channel : null;
  }

  /**
   * Leave the channel that this client is on, and when that is over, go to another.
   *
   * @param {string} channel
   * @param {object | Function} [identity] what the server is to know; may be left out
   * @param {Function} [callback] called before the promise resolves
   * @returns {Promise<void>} resolves when the server has let the client in; rejects with Refused when it did not, and with
   *   Disconnected when the server cannot be reached, or another `connect` or `disconnect` came first
   */
  async connect(channel, identity = {}, callback) {
    if (typeof identity === "function") [identity, callback] = [{}, identity];
    const wish = ++this.#wish;
    await this.#session?.close("superseded", "another connect() or disconnect() came first");
    if (wish !== this.#wish) throw new Disconnected("superseded", "another connect() or disconnect() came first");
    const session = new Session(this.#url, channel, identity, (action, values, answer) =>
      this.#dispatch(action, values, answer),
    );
    this.#session = session;
    session.ended.then((end) => {
      // Whoever awaits connect() hears of a session that never opened.
      if (session.wasOpen && !session.closing) this.onclose?.(end);
    });
    await session.accepted;
    callback?.();
  }

  /**
   * Send an action.
   *
   * @param {string} action
   * @param {...unknown} payload a JSON value, in which ArrayBuffers and their views may stand; or none, or several
   * @throws {Disconnected} this client is on no channel
   */
  send(action, ...payload) {
    this.#opened().event(action, payload);
  }

  /**
   * Send an action and wait for the answer of its handler.
   *
   * @param {string} action
   * @param {...unknown} payload
   * @returns {Promise<any>} the answer; rejects with Disconnected when the connection ends before it
   */
  async call(action, ...payload) {
    return this.#opened().call(action, payload);
  }

  /**
   * Have a function called with the payload of each action of this name. What it returns, or what its promise brings,
   * answers the server's call, if it was one.
   *
   * @param {string} action
   * @param {(...payload: any[]) => unknown} callback
   * @returns {() => void} call it to stop
   */
  receive(action, callback) {
    const receivers = this.#receivers.get(action) ?? new Set();
    this.#receivers.set(action, receivers.add(callback));
    return () => receivers.delete(callback);
  }

  /**
   * Leave the channel and be on none.
   *
   * @returns {Promise<void>} resolves when it is over
   */
  async disconnect() {
    this.#wish += 1;
    await this.#session?.close("closed", "this client disconnected");
  }

  #opened() {
    if (!this.#session?.open) throw new Disconnected("closed", "this client is on no channel");
    return this.#session;
  }

  /** @param {string} action @param {any[]} values @param {((values: any[]) => void) | null} answer */
  #dispatch(action, values, answer) {
    for (const receiver of [...(this.#receivers.get(action) ?? [])]) {
      // In a promise, so that one that throws is reported by the browser and takes nothing else down.
      const result = new Promise((resolve) => resolve(receiver(...values)));
      if (answer) {
        const reply = answer;
        result.then((value) => reply(value === undefined ? [] : [value]));
        answer = null; // the first receiver answers
      }
    }
  }
}

/** One WebSocket, from its handshake to its end, for one channel. */
class Session {
  #socket;
  #namespace;
  #identity;
  #dispatch;
  #patience = OPEN_TIMEOUT; // milliseconds of silence that the server is allowed
  #watchdog;
  #calls = new Map();
  #lastCall = 0;
  /** @type {{text: string, missing: number, buffers: ArrayBuffer[]} | null} a packet that waits for its attachments */
  #partial = null;
  /** @type {Disconnected | null} */
  #end = null;
  #accept;
  #reject;
  #finish;

  #joined = false; // the namespace's CONNECT was answered
  wasOpen = false; // the server has let us in, once
  closing = false;

  constructor(url, channel, identity, dispatch) {
    this.channel = channel;
    this.#namespace = channel.startsWith("/") ? channel : "/";
    this.#identity = identity;
    this.#dispatch = dispatch;
    this.accepted = new Promise((resolve, reject) => ([this.#accept, this.#reject] = [resolve, reject]));
    this.ended = new Promise((resolve) => (this.#finish = resolve));
    this.#socket = new WebSocket(url);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => this.#guarded(data);
    this.#socket.onclose = () => this.#over();
    this.#watch();
  }

  get open() {
    return this.wasOpen && !this.#end && this.#socket.readyState === WebSocket.OPEN;
  }

  /** @param {string} action @param {unknown[]} values @param {number} [id] */
  event(action, values, id) {
    if (typeof action !== "string" || RESERVED.has(action)) throw new TypeError(`${action} cannot be an action's name`);
    this.#packet(2, [action, ...values], id);
  }

  call(action, values) {
    const id = ++this.#lastCall;
    return new Promise((resolve, reject) => {
      this.event(action, values, id);
      this.#calls.set(id, { resolve, reject });
    });
  }

  /** End the session from this side. @returns {Promise<Disconnected>} when it is over */
  close(code, reason) {
    this.closing = true;
    if (this.#joined && !this.#end && this.#socket.readyState === WebSocket.OPEN) this.#packet(1);
    this.#stop(code, reason);
    return this.ended;
  }

  #stop(code, reason) {
    if (this.#end) return;
    this.#end = new Disconnected(code, reason);
    this.#socket.close(); // what was sent before still goes out
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#over(), CLOSE_TIMEOUT); // a peer that is gone never closes its side
  }

  #over() {
    clearTimeout(this.#watchdog);
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#end ??= this.wasOpen
      ? new Disconnected("lost", "the connection to the server was lost")
      : new Disconnected("unreachable", "the server cannot be reached, or is no Socket.IO server");
    this.#reject(this.#end);
    for (const { reject } of this.#calls.values()) reject(this.#end);
    this.#calls.clear();
    this.#finish(this.#end);
  }

  /** The server pings at fixed intervals: longer silence means that it is gone, though no socket says so. */
  #watch() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => {
      this.#stop("timeout", "the server is silent");
      this.#over();
    }, this.#patience);
  }

  /** @param {string | ArrayBuffer} data */
  #guarded(data) {
    if (this.#end) return; // in flight when we closed
    try {
      if (typeof data !== "string") this.#attachment(data);
      else this.#engine(data[0], data.slice(1));
    } catch (error) {
      // The server's fault, or an identity that JSON cannot carry. Receivers run elsewhere: theirs do not come here.
      this.#stop("protocol error", error.message);
    }
  }

  /** @param {string} type @param {string} data */
  #engine(type, data) {
    switch (type) {
      case "0": {
        const { pingInterval, pingTimeout } = parse(data);
        if (!(pingInterval > 0 && pingTimeout > 0)) throw new Error("an open packet without its times");
        this.#patience = pingInterval + pingTimeout;
        this.#watch();
        return this.#packet(0, this.#namespace === "/" ? undefined : this.#identity);
      }
      case "1":
        return this.#stop("closed by server", "the server closed the session");
      case "2":
        this.#watch();
        return this.#socket.send("3" + data);
      case "4":
        return this.#message(data);
      case "6":
        return;
      default:
        throw new Error("an unknown Engine.IO packet");
    }
  }

  /** @param {string} text */
  #message(text) {
    if (this.#partial) throw new Error("a packet in place of an attachment");
    const attachments = /^[56](\d{1,4})-/.exec(text);
    if (attachments && Number(attachments[1]) > 0) {
      this.#partial = { text, missing: Number(attachments[1]), buffers: [] };
    } else {
      this.#socketio(text, []);
    }
  }

  /** @param {ArrayBuffer} buffer */
  #attachment(buffer) {
    const partial = this.#partial;
    if (!partial) throw new Error("an attachment that no packet announced");
    partial.buffers.push(buffer);
    if (partial.buffers.length < partial.missing) return;
    this.#partial = null;
    this.#socketio(partial.text, partial.buffers);
  }

  /** @param {string} text @param {ArrayBuffer[]} buffers */
  #socketio(text, buffers) {
    const [, type, , namespace = "/", id, json] = PACKET.exec(text) ?? [];
    if (!type) throw new Error("an unknown Socket.IO packet");
    if (namespace !== this.#namespace) return;
    const data = json ? parse(json, type > "4" ? buffers : null) : undefined;
    switch (type) {
      case "0":
        this.#joined = true;
        if (this.channel === this.#namespace) this.#opened();
        else this.#packet(2, [IDENTIFY, { ...this.#identity, [CHANNEL]: this.channel }]);
        return;
      case "1":
        return this.#stop("closed by server", "the server ended the connection");
      case "4":
        return this.#refused(data?.message, data?.data);
      case "2":
      case "5":
        if (!Array.isArray(data) || typeof data[0] !== "string") throw new Error("an event without a name");
        return this.#event(data[0], data.slice(1), id);
      case "3":
      case "6": {
        if (!Array.isArray(data)) throw new Error("an answer that is no array");
        const call = this.#calls.get(Number(id));
        this.#calls.delete(Number(id));
        return call?.resolve(data.length > 1 ? data : data[0]);
      }
    }
  }

  /** @param {string} action @param {any[]} values @param {string | undefined} id */
  #event(action, values, id) {
    switch (action) {
      case IDENTIFIED:
        return this.#opened();
      case REFUSED:
        return this.#refused(values[0]?.reason);
      case CLOSED:
        return this.#stop(String(values[0]?.code ?? "closed by server"), String(values[0]?.reason ?? "the server closed"));
    }
    const answer = id === undefined ? null : (values) => this.open && this.#packet(3, values, Number(id));
    if (this.wasOpen) this.#dispatch(action, values, answer);
  }

  #opened() {
    this.wasOpen = true;
    this.#accept();
  }

  #refused(reason = "refused", data = undefined) {
    this.#reject(new Refused(this.channel, String(reason), data)); // no effect on a connection that was let in before
    this.#stop("refused", String(reason));
  }

  /** @param {number} type @param {unknown} [data] @param {number} [id] */
  #packet(type, data, id) {
    /** @type {(ArrayBuffer | ArrayBufferView)[]} */
    const buffers = [];
    const json = data === undefined ? "" : JSON.stringify(data, (_, value) => {
      if (!(value instanceof ArrayBuffer || ArrayBuffer.isView(value))) return value;
      return { _placeholder: true, num: buffers.push(value) - 1 };
    });
    if (buffers.length && type === 0) throw new TypeError("an identity for a namespace cannot hold binary data");
    const header = buffers.length ? `${type + 3}${buffers.length}-` : type;
    const namespace = this.#namespace === "/" ? "" : `${this.#namespace},`;
    this.#socket.send(`4${header}${namespace}${id ?? ""}${json}`);
    for (const buffer of buffers) this.#socket.send(buffer);
  }
}

/** @param {string} json @param {ArrayBuffer[] | null} [buffers] what placeholders stand for */
function parse(json, buffers) {
  if (!buffers) return JSON.parse(json);
  return JSON.parse(json, (_, value) => {
    if (value?._placeholder !== true) return value;
    if (!Number.isInteger(value.num) || !(value.num in buffers)) throw new Error("a placeholder without an attachment");
    return buffers[value.num];
  });
}
