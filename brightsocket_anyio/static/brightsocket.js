// @ts-check
/**
 * Brightsocket for browsers: one ES module, no build step, no dependencies. A Brightsocket server serves it itself:
 *
 *     import brightsocket from "/socket.io/brightsocket.js";
 *
 *     const api = brightsocket();                            // the server that this module came from; or brightsocket(URL)
 *     api.receive("LOGGED_IN", ({ userType, token }) => api.connect(userType, { token }));
 *     await api.connect("GUEST", { username, password });    // rejects with Refused, and the server's reason
 *     api.send("MESSAGE", "hello");
 *     const users = await api.call("LIST_USERS");
 *
 * A client is on one channel at a time. `connect` ends the connection to the old channel, waits until it is over, and only
 * then opens the new one. Receivers put on the client stay over a switch, those put on a connection end with it.
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

/** Actions that may wait for a receiver; when there are more, the oldest is dropped. */
const INBOX_SIZE = 1_000;

const PACKET = /^([0-6])(?:(\d{1,4})-)?(?:(\/[^,]*),?)?(\d{1,15})?(.*)$/s;

/** @typedef {Record<string, unknown>} Identity */
/** @typedef {(...payload: any[]) => unknown} Receiver */
/** @typedef {Map<string, Set<{receiver: Receiver}>>} Receivers by action */
/** @typedef {{action: string, values: any[], answer: ((values: unknown[]) => void) | null}} Arrival */
/** @typedef {ArrayBuffer | ArrayBufferView | Blob} Binary */

/** The server turned this client away: it is on no channel now. */
export class Refused extends Error {
  /**
   * @param {string} channel
   * @param {string} reason
   * @param {unknown} [data] what the server sent beside the reason
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
 * Make a client. Nothing is opened before `connect`.
 *
 * @param {string} [location] the server's URL, to which the path is added; its query goes out with the handshake. Left out,
 *   it is the server that this module was loaded from.
 * @param {{path?: string}} [options] where the API is on the server: `/socket.io/`, unless it says otherwise
 */
export default function brightsocket(location, options) {
  return new Client(location, options);
}

export class Client {
  #url;
  /** @type {Receivers} */
  #receivers = new Map();
  /** @type {Connection | null} the newest; it opens when the one before is over */
  #connection = null;

  /** @param {string} [location] @param {{path?: string}} [options] */
  constructor(location, options) {
    this.#url = endpoint(location, options?.path);
  }

  /**
   * Called when a connection ends that neither `connect` nor `disconnect` ended: lost, or ended by the server.
   * @type {((end: Disconnected) => void) | null}
   */
  onclose = null;

  /** The channel that the server has let this client in to, or null. */
  get channel() {
    return this.#connection?.open ? this.#connection.channel : null;
  }

  /**
   * Leave the channel that this client is on, and when that is over, go to another.
   *
   * @param {string} channel
   * @param {Identity | ((connection: Connection) => void)} [identity] what the server is to know; may be left out
   * @param {(connection: Connection) => void} [callback] called before the promise resolves
   * @returns {Promise<Connection>} resolves when the server has let the client in; rejects with Refused when it did not, and
   *   with Disconnected when the server cannot be reached, or another `connect` or `disconnect` came first
   */
  async connect(channel, identity, callback) {
    if (typeof identity === "function") [identity, callback] = [{}, identity];
    const over = this.#connection?.end("superseded", "another connect() came first");
    const connection = (this.#connection = new Connection(this.#url, channel, identity ?? {}, this.#receivers, over));
    await connection.accepted;
    connection.closed.then((end) => connection.ending || this.onclose?.(end));
    callback?.(connection);
    return connection;
  }

  /**
   * Send an action. What is sent while `connect` waits goes out when the server has let the client in.
   *
   * @param {string} action
   * @param {...unknown} payload a JSON value, in which ArrayBuffers, their views and Blobs may stand; or none, or several
   * @throws {Disconnected} this client is on no channel
   */
  send(action, ...payload) {
    this.#current().send(action, ...payload);
  }

  /**
   * Send an action and wait for the answer of its handler.
   *
   * @param {string} action
   * @param {...unknown} payload
   * @returns {Promise<any>} the answer (an array of them, if there are several); rejects with Disconnected when the
   *   connection ends before it
   */
  async call(action, ...payload) {
    return this.#current().call(action, ...payload);
  }

  /**
   * Have a function called with the payload of each action of this name, on whichever channel the client is. What it
   * returns, or what its promise brings, answers the server's call, if it was one.
   *
   * @param {string} action
   * @param {Receiver} receiver
   * @returns {() => void} call it to stop
   */
  receive(action, receiver) {
    this.#connection?.deliverSoon(action);
    return register(this.#receivers, action, receiver);
  }

  /**
   * Leave the channel and be on none.
   *
   * @returns {Promise<void>} resolves when it is over
   */
  async disconnect() {
    await this.#connection?.end("closed", "this client disconnected");
  }

  #current() {
    if (!this.#connection) throw new Disconnected("closed", "this client is on no channel");
    return this.#connection;
  }
}

/** A client's stay on one channel: one WebSocket, from its handshake to its end. Made by `Client.connect`. */
export class Connection {
  #url;
  #namespace;
  #identity;
  /** @type {[Receivers, Receivers]} the client's, and those of this connection */
  #receivers;
  /** @type {WebSocket | undefined} */
  #socket;
  #joined = false; // the namespace's CONNECT was answered
  #offsets = false; // each event's last value is for clients that ask for what they have missed, which this one does not
  #accepted = false; // the server has let us in
  #ending = false; // by this side
  /** @type {Disconnected | null} */
  #end = null;

  /** @type {(string | Binary)[]} what was sent before the server let us in */
  #held = [];
  /** @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void}>} */
  #calls = new Map();
  #lastCall = 0;
  /** @type {{text: string, missing: number, buffers: ArrayBuffer[]} | null} a packet that waits for its attachments */
  #partial = null;
  /** @type {Arrival[]} what no receiver has taken yet */
  #inbox = [];

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #watchdog;
  #patience = OPEN_TIMEOUT; // milliseconds of silence that the server is allowed
  #heard = 0;

  #accept = () => {};
  #reject = /** @type {(error: Error) => void} */ (() => {});
  #finish = /** @type {(end: Disconnected) => void} */ (() => {});

  /**
   * @param {string} url
   * @param {string} channel
   * @param {Identity} identity
   * @param {Receivers} receivers the client's
   * @param {Promise<unknown>} [previous] the connection before this one is over
   */
  constructor(url, channel, identity, receivers, previous = Promise.resolve()) {
    this.#url = url;
    this.#identity = identity;
    this.#namespace = channel.startsWith("/") ? channel : "/";
    this.#receivers = [receivers, new Map()];
    this.channel = channel;
    /** @type {Promise<void>} resolves when the server has let the client in, rejects when it has not */
    this.accepted = new Promise((resolve, reject) => ([this.#accept, this.#reject] = [resolve, reject]));
    /** @type {Promise<Disconnected>} resolves when this connection is over, with the reason */
    this.closed = new Promise((resolve) => (this.#finish = resolve));
    previous.then(() => (this.#end ? this.#over() : this.#dial()));
  }

  /** The server has let the client in, and the connection has not ended. */
  get open() {
    return this.#accepted && !this.#end && this.#socket?.readyState === WebSocket.OPEN;
  }

  /** It was this side that ended the connection. */
  get ending() {
    return this.#ending;
  }

  /**
   * As `Client.send`, on this connection only.
   *
   * @param {string} action
   * @param {...unknown} payload
   * @throws {Disconnected} this connection is over
   */
  send(action, ...payload) {
    this.#event(action, payload);
  }

  /**
   * As `Client.call`, on this connection only.
   *
   * @param {string} action
   * @param {...unknown} payload
   * @returns {Promise<any>}
   */
  async call(action, ...payload) {
    const id = ++this.#lastCall;
    this.#event(action, payload, id);
    return new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
  }

  /**
   * As `Client.receive`, for as long as this connection lasts.
   *
   * @param {string} action
   * @param {Receiver} receiver
   * @returns {() => void} call it to stop
   */
  receive(action, receiver) {
    this.deliverSoon(action);
    return register(this.#receivers[1], action, receiver);
  }

  /**
   * End this connection.
   *
   * @returns {Promise<void>} resolves when it is over
   */
  async disconnect() {
    await this.end("closed", "this client disconnected");
  }

  /** For the client: end this connection. @param {string} code @param {string} reason */
  end(code, reason) {
    if (!this.#end) {
      this.#ending = true;
      if (this.#joined && this.#socket?.readyState === WebSocket.OPEN) this.#transmit(this.#encode(1));
      this.#stop(code, reason);
    }
    return this.closed;
  }

  /** For the client: there is a new receiver, which gets what has waited. @param {string} action */
  deliverSoon(action) {
    // not at once: whoever registers a receiver does not expect it to be called before that is done
    queueMicrotask(() => {
      const waiting = this.#inbox.filter((arrival) => arrival.action === action);
      this.#inbox = this.#inbox.filter((arrival) => arrival.action !== action);
      for (const arrival of waiting) this.#deliver(arrival);
    });
  }

  // -- the life of the WebSocket

  #dial() {
    try {
      this.#socket = new WebSocket(this.#url);
    } catch (error) {
      this.#end = new Disconnected("unreachable", String(error)); // a page of https: may not use ws:
      return this.#over();
    }
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => this.#guarded(data);
    this.#socket.onclose = () => this.#over();
    this.#heard = performance.now();
    this.#watch();
  }

  /** The server pings at fixed intervals: longer silence means that it is gone, though no socket says so. */
  #watch() {
    clearTimeout(this.#watchdog);
    const left = this.#heard + this.#patience - performance.now();
    this.#watchdog = setTimeout(() => {
      if (performance.now() < this.#heard + this.#patience) return this.#watch();
      this.#stop("timeout", "the server is silent");
      this.#over();
    }, left);
  }

  /** @param {string} code @param {string} reason */
  #stop(code, reason) {
    if (this.#end) return;
    this.#end = new Disconnected(code, reason);
    this.#inbox = [];
    clearTimeout(this.#watchdog);
    if (!this.#socket) return; // it waits for the connection before it, and is over after that one
    this.#socket.close(); // what was sent before still goes out
    this.#watchdog = setTimeout(() => this.#over(), CLOSE_TIMEOUT); // a peer that is gone never closes its side
  }

  #over() {
    clearTimeout(this.#watchdog);
    if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null;
    this.#end ??= this.#accepted
      ? new Disconnected("lost", "the connection to the server was lost")
      : new Disconnected("unreachable", "the server cannot be reached, or is no Socket.IO server");
    this.#reject(this.#end);
    for (const { reject } of this.#calls.values()) reject(this.#end);
    this.#calls.clear();
    this.#finish(this.#end);
  }

  // -- what comes in

  /** @param {string | ArrayBuffer} data */
  #guarded(data) {
    if (this.#end) return; // in flight when we closed
    this.#heard = performance.now();
    try {
      if (typeof data !== "string") this.#attachment(data);
      else this.#engine(data.charAt(0), data.slice(1));
    } catch (error) {
      // The server's fault, or an identity that JSON cannot carry. Receivers run elsewhere: theirs do not come here.
      this.#stop("protocol error", error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {string} type @param {string} data */
  #engine(type, data) {
    switch (type) {
      case "0": {
        const { pingInterval, pingTimeout } = JSON.parse(data);
        if (!(pingInterval > 0 && pingTimeout > 0)) throw new Error("an open packet without its times");
        this.#patience = pingInterval + pingTimeout;
        this.#watch();
        return this.#transmit(this.#encode(0, this.channel === this.#namespace ? this.#identity : undefined));
      }
      case "1":
        return this.#stop("closed by server", "the server closed the session");
      case "2":
        return this.#transmit([`3${data}`]);
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
    const missing = Number(/^[56](\d{1,4})-/.exec(text)?.[1] ?? 0);
    if (missing) this.#partial = { text, missing, buffers: [] };
    else this.#packet(text, []);
  }

  /** @param {ArrayBuffer} buffer */
  #attachment(buffer) {
    const partial = this.#partial;
    if (!partial) throw new Error("an attachment that no packet announced");
    partial.buffers.push(buffer);
    if (partial.buffers.length < partial.missing) return;
    this.#partial = null;
    this.#packet(partial.text, partial.buffers);
  }

  /** @param {string} text @param {ArrayBuffer[]} buffers */
  #packet(text, buffers) {
    const [, type, , namespace = "/", id, json] = PACKET.exec(text) ?? [];
    if (!type) throw new Error("an unknown Socket.IO packet");
    if (namespace !== this.#namespace) return;
    const data = json ? decode(json, type > "4" ? buffers : null) : undefined;
    switch (type) {
      case "0":
        this.#joined = true;
        this.#offsets = typeof data?.offset === "string";
        if (this.channel === this.#namespace) return this.#opened();
        return this.#transmit(this.#encode(2, [IDENTIFY, { ...this.#identity, [CHANNEL]: this.channel }]));
      case "1":
        return this.#stop("closed by server", "the server ended the connection");
      case "4":
        return this.#refused(data?.message, data?.data);
      case "2":
      case "5":
        if (!Array.isArray(data) || typeof data[0] !== "string") throw new Error("an event without a name");
        return this.#action(data[0], data.slice(1), id);
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
  #action(action, values, id) {
    switch (action) {
      case IDENTIFIED:
        this.#offsets = typeof values[0] === "string";
        return this.#opened();
      case REFUSED:
        return this.#refused(values[0]?.reason);
      case CLOSED:
        return this.#stop(String(values[0]?.code ?? "closed by server"), String(values[0]?.reason ?? "the server closed"));
    }
    if (!this.#accepted) return;
    if (this.#offsets && id === undefined) values.pop();
    /** @param {unknown[]} values */
    const reply = (values) => this.open && this.#transmit(this.#encode(3, values, Number(id)));
    this.#deliver({ action, values, answer: id === undefined ? null : reply });
  }

  #opened() {
    if (this.#accepted) return;
    this.#accepted = true;
    this.#transmit(this.#held);
    this.#held = [];
    this.#accept();
  }

  #refused(reason = "refused", data = undefined) {
    this.#reject(new Refused(this.channel, String(reason), data)); // no effect on a connection that was let in before
    this.#stop("refused", String(reason));
  }

  /** @param {Arrival} arrival */
  #deliver(arrival) {
    const receivers = this.#receivers.flatMap((each) => [...(each.get(arrival.action) ?? [])]);
    if (receivers.length === 0 && this.#inbox.push(arrival) > INBOX_SIZE) {
      const dropped = this.#inbox.shift();
      console.warn(`brightsocket: too much waits for a receiver; dropped the oldest, ${dropped?.action}`);
    }
    for (const [index, { receiver }] of receivers.entries()) {
      if (this.#end) return; // by the receiver before
      // In a promise, so that one that throws is reported by the browser and takes nothing else down.
      const result = new Promise((resolve) => resolve(receiver(...arrival.values)));
      const answer = index === 0 && arrival.answer; // the first one answers
      if (answer) result.then((value) => answer(value === undefined ? [] : [value]));
    }
  }

  // -- what goes out

  /** @param {string} action @param {unknown[]} values @param {number} [id] */
  #event(action, values, id) {
    if (typeof action !== "string" || RESERVED.has(action)) throw new TypeError(`${action} cannot be an action's name`);
    if (this.#end) throw new Disconnected(this.#end.code, this.#end.reason);
    const frames = this.#encode(2, [action, ...values], id);
    if (this.#accepted) this.#transmit(frames);
    else this.#held.push(...frames);
  }

  /**
   * A Socket.IO packet as WebSocket messages.
   *
   * @param {number} type @param {unknown} [data] @param {number} [id]
   * @returns {(string | Binary)[]}
   */
  #encode(type, data, id) {
    /** @type {Binary[]} */
    const buffers = [];
    const json = JSON.stringify(data, function (key, value) {
      const raw = this[key]; // before a toJSON
      return isBinary(raw) ? { _placeholder: true, num: buffers.push(raw) - 1 } : value;
    });
    if (buffers.length && type === 0) throw new TypeError("an identity for a namespace cannot hold binary data");
    const header = buffers.length ? `${type + 3}${buffers.length}-` : type;
    const namespace = this.#namespace === "/" ? "" : `${this.#namespace},`;
    return [`4${header}${namespace}${id ?? ""}${json ?? ""}`, ...buffers];
  }

  /** @param {(string | Binary)[]} frames */
  #transmit(frames) {
    for (const frame of frames) this.#socket?.send(/** @type {any} */ (frame));
  }
}

/** The URL of an API's WebSockets. @param {string} [location] @param {string} [path] */
function endpoint(location, path) {
  let url;
  if (location === undefined) {
    url = new URL(path ?? ".", import.meta.url);
    url.search = "";
  } else {
    url = new URL(location, globalThis.location?.href);
    url.pathname = url.pathname.replace(/\/$/, "") + (path ?? "/socket.io/");
  }
  url.protocol = url.protocol.replace("http", "ws");
  if (!url.protocol.startsWith("ws")) throw new TypeError(`brightsocket needs the URL of a server, unlike ${url}`);
  url.hash = "";
  url.searchParams.set("EIO", "4");
  url.searchParams.set("transport", "websocket");
  return url.href;
}

/** @param {Receivers} receivers @param {string} action @param {Receiver} receiver */
function register(receivers, action, receiver) {
  const entry = { receiver }; // its own, so that a function may be registered twice
  const entries = receivers.get(action) ?? new Set();
  receivers.set(action, entries.add(entry));
  return () => void entries.delete(entry);
}

/** @param {unknown} value @returns {value is Binary} */
function isBinary(value) {
  return value instanceof ArrayBuffer || ArrayBuffer.isView(value) || value instanceof Blob;
}

/** @param {string} json @param {ArrayBuffer[] | null} buffers what placeholders stand for */
function decode(json, buffers) {
  if (!buffers) return JSON.parse(json);
  return JSON.parse(json, (_, value) => {
    if (value?._placeholder !== true) return value;
    const buffer = Number.isInteger(value.num) ? buffers[value.num] : undefined;
    if (!buffer) throw new Error("a placeholder without its attachment");
    return buffer;
  });
}
