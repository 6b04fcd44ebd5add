// brightsocket.js in Chromium against the stock Socket.IO server: what it does on the wire is what that server expects.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import test from "node:test";
import { Server } from "socket.io";
import { openPage } from "./launch.mjs";

const MODULE = await readFile(new URL("../../brightsocket_anyio/static/brightsocket.js", import.meta.url));

/** A Brightsocket server made of the stock one: it lets everyone in but REFUSER, and notes who is there. */
async function startServer(test) {
  const http = createServer((request, response) => {
    const script = request.url === "/brightsocket.js";
    response.writeHead(200, { "content-type": script ? "text/javascript" : "text/html" });
    response.end(script ? MODULE : '<!doctype html><title>test</title><link rel="icon" href="data:,">');
  });
  const io = new Server(http, { pingInterval: 100, pingTimeout: 2_000, allowUpgrades: false });
  const log = [];
  io.on("connection", (socket) => {
    socket.on("BRIGHTSOCKET:IDENTIFY", ({ "BRIGHTSOCKET:CHANNEL": channel, ...identity }) => {
      log.push(`${channel} opened`);
      socket.on("disconnect", (reason) => log.push(`${channel} closed: ${reason}`));
      if (channel === "REFUSER") {
        socket.emit("BRIGHTSOCKET:REFUSED", { reason: "not you" });
        socket.disconnect(true);
      } else {
        socket.emit("BRIGHTSOCKET:IDENTIFIED");
        socket.emit("WELCOME", identity);
      }
    });
    socket.on("ECHO", (...values) => socket.emit("ECHOED", ...values));
    socket.on("ASK", (...values) => values.pop()(...values));
    socket.on("ASK_ME", (question) => socket.emit("QUESTION", question, (...answer) => socket.emit("ANSWERED", ...answer)));
    socket.on("LEAVE_ME", () => {
      socket.emit("BRIGHTSOCKET:CLOSED", { code: "bored", reason: "nothing happens" });
      socket.disconnect(true);
    });
    socket.on("CUT", () => socket.conn.close());
  });
  io.of("/chat").use((socket, next) => {
    if (socket.handshake.auth.token === "good") return next();
    next(Object.assign(new Error("bad token"), { data: { tries: 1 } }));
  });
  io.of("/chat").on("connection", (socket) => socket.on("ASK", (value, answer) => answer(value)));
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  test.after(() => io.close());
  return { url: `http://127.0.0.1:${http.address().port}/`, log, io };
}

test("brightsocket.js", async (suite) => {
  const server = await startServer(suite);
  const page = await openPage(suite);
  await page.goto(server.url);
  await page.evaluate(async () => {
    const module = await import("/brightsocket.js");
    window.Refused = module.Refused;
    window.brightsocket = (url = location.origin, options) => module.default(url, options); // /socket.io/ is the server's
    window.next = (client, action) => new Promise((resolve) => {
      const stop = client.receive(action, (...values) => { stop(); resolve(values); });
    });
  });
  const run = (function_, argument) => page.evaluate(function_, argument);
  suite.beforeEach(() => { server.log.length = 0; });

  await suite.test("connects, with the identity, and is told what the server sends first", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      const welcome = next(client, "WELCOME");
      let called = false;
      await client.connect("GUEST", { name: "Ada" }, () => { called = true; });
      const result = [client.channel, called, await welcome];
      await client.disconnect();
      return [...result, client.channel];
    }), ["GUEST", true, [{ name: "Ada" }], null]);
  });

  await suite.test("carries every JSON value, none and several", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      await client.connect("GUEST");
      const results = [];
      for (const values of [[0], [false], [""], [[]], [null], [], [1, "two"], ["\u2028 🎉 \0"], [{ a: [{ b: 1 }] }]]) {
        const echoed = next(client, "ECHOED");
        client.send("ECHO", ...values);
        results.push(JSON.stringify(await echoed) === JSON.stringify(values));
      }
      await client.disconnect();
      return results;
    }), Array(9).fill(true));
  });

  await suite.test("carries binary data in events, calls and answers", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      await client.connect("GUEST");
      const echoed = next(client, "ECHOED");
      client.send("ECHO", { one: new Uint8Array([1, 2]), more: [new ArrayBuffer(0), new Uint8Array([9]).buffer] });
      const [{ one, more }] = await echoed;
      const answer = await client.call("ASK", new Uint8Array([7, 8]).subarray(1));
      client.receive("QUESTION", (question) => new Uint8Array([question]));
      const answered = next(client, "ANSWERED");
      client.send("ASK_ME", 5);
      const [five] = await answered;
      await client.disconnect();
      return [one, ...more, answer, five].map((buffer) => [...new Uint8Array(buffer)]);
    }), [[1, 2], [], [9], [8], [5]]);
  });

  await suite.test("calls and is called", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      await client.connect("GUEST");
      client.receive("QUESTION", async (question) => question + 1);
      const answered = next(client, "ANSWERED");
      client.send("ASK_ME", 41);
      const result = await Promise.all([client.call("ASK"), client.call("ASK", 1), client.call("ASK", 1, 2), answered]);
      await client.disconnect();
      return result.map((value) => value ?? "nothing");
    }), ["nothing", 1, [1, 2], [42]]);
  });

  await suite.test("is refused, with the reason, and can try elsewhere", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      let ends = 0;
      client.onclose = () => { ends += 1; };
      const error = await client.connect("REFUSER").catch((error) => error);
      const result = [error instanceof Refused, error.channel, error.reason, client.channel, ends];
      await client.connect("GUEST");
      await client.disconnect();
      return result;
    }), [true, "REFUSER", "not you", null, 0]);
  });

  await suite.test("a switch closes the old session before it opens the new one, and receivers stay", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      const welcomed = [];
      client.receive("WELCOME", ({ n }) => welcomed.push(n));
      for (const n of [1, 2, 3]) {
        await client.connect(`CHANNEL${n}`, { n });
        await client.call("ASK");
      }
      await client.disconnect();
      return welcomed;
    }), [1, 2, 3]);
    assert.deepEqual(server.log.slice(0, 5), [
      "CHANNEL1 opened",
      "CHANNEL1 closed: client namespace disconnect",
      "CHANNEL2 opened",
      "CHANNEL2 closed: client namespace disconnect",
      "CHANNEL3 opened",
    ]);
  });

  await suite.test("of several connects at once the last one wins", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      const results = await Promise.allSettled(["A", "B", "C"].map((name) => client.connect(name)));
      const outcome = results.map((result) => result.reason?.code ?? "in");
      const channel = client.channel;
      const leaving = client.connect("D").catch((error) => error.code);
      await client.disconnect();
      return [outcome, channel, await leaving, client.channel];
    }), [["superseded", "superseded", "in"], "C", "closed", null]);
  });

  await suite.test("reaches a namespace, and is turned away from one", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      const error = await client.connect("/chat", { token: "bad" }).catch((error) => error);
      await client.connect("/chat", { token: "good" });
      const answer = await client.call("ASK", "hi");
      await client.connect("/");
      const binary = await client.connect("/chat", { token: new ArrayBuffer(1) }).catch((error) => error.code);
      await client.disconnect();
      return [error.message, error.data, answer, binary];
    }), ["bad token", { tries: 1 }, "hi", "protocol error"]);
  });

  await suite.test("says why a connection ended, to calls in flight too", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      const results = [];
      for (const action of ["LEAVE_ME", "CUT"]) {
        await client.connect("GUEST");
        const end = new Promise((resolve) => { client.onclose = resolve; });
        const call = client.call("NOBODY_ANSWERS").catch((error) => error.code);
        client.send(action);
        results.push((await end).code, await call);
      }
      try { client.send("ECHO"); } catch (error) { results.push(error.code); }
      return results;
    }), ["bored", "bored", "lost", "lost", "lost"]);
  });

  await suite.test("answers pings, and notices a server that goes silent", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      await client.connect("GUEST");
      const ended = new Promise((resolve) => { client.onclose = resolve; });
      window.silenced = { client, ended };
      return client.channel;
    }), "GUEST");
    const [{ conn }] = server.io.sockets.sockets.values();
    for (let pongs = 0; pongs < 3; pongs += 1) await once(conn, "heartbeat");
    clearTimeout(conn.pingIntervalTimer); // no more pings, so that it does not close the connection for want of a pong either
    assert.equal(await run(async () => (await silenced.ended).code), "timeout");
  });

  await suite.test("a server that is none is told from one", async () => {
    assert.equal(await run(() => brightsocket("http://127.0.0.1:9").connect("GUEST").catch((error) => error.code)), "unreachable");
    assert.equal(await run(() => brightsocket(location.origin, { path: "/other/" }).connect("GUEST").catch((e) => e.code)), "unreachable");
  });

  await suite.test("keeps reserved names off the wire", async () => {
    assert.deepEqual(await run(async () => {
      const client = brightsocket();
      await client.connect("GUEST");
      const names = ["connect", "disconnect", 7].map((name) => { try { client.send(name); } catch (error) { return error.name; } });
      await client.disconnect();
      return names;
    }), ["TypeError", "TypeError", "TypeError"]);
  });
});
