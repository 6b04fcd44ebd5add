// The original Brightsocket client's few lines over the stock socket.io-client, in the shape of brightsocket.js: with it in
// that one's place the login page shows what a page sees that comes with the stock client. TRANSPORTS is filled in.
import { io } from "/stock/socket.io.esm.min.js";

class Refused extends Error {
  name = "Refused";
}

class Disconnected extends Error {
  name = "Disconnected";

  constructor(code) {
    super(code);
    this.code = code;
  }
}

class Client {
  #socket = null;
  #receivers = [];
  onclose = null;

  connect(channel, identity = {}) {
    this.disconnect();
    const socket = this.#socket = io({ transports: TRANSPORTS, forceNew: true, reconnection: false });
    for (const [action, receiver] of this.#receivers) socket.on(action, receiver);
    return new Promise((resolve, reject) => {
      socket.on("connect", () => socket.emit("BRIGHTSOCKET:IDENTIFY", { ...identity, "BRIGHTSOCKET:CHANNEL": channel }));
      socket.on("connect_error", reject);
      socket.on("BRIGHTSOCKET:REFUSED", ({ reason }) => reject(new Refused(reason)));
      let open = false;
      socket.on("BRIGHTSOCKET:IDENTIFIED", () => {
        open = true;
        resolve();
      });
      socket.on("disconnect", (reason) => {
        reject(new Disconnected(reason)); // no effect where it was let in
        if (open && socket === this.#socket) this.onclose?.(new Disconnected(reason));
      });
    });
  }

  send(action, ...payload) {
    this.#socket.emit(action, ...payload);
  }

  call(action, ...payload) {
    return this.#socket.emitWithAck(action, ...payload);
  }

  receive(action, receiver) {
    this.#receivers.push([action, receiver]);
    this.#socket?.on(action, receiver);
  }

  disconnect() {
    const socket = this.#socket;
    this.#socket = null; // first, so that onclose is not for this end
    socket?.disconnect();
  }
}

export default () => new Client();
