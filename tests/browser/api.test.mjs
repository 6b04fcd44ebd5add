// Pages in Chromium and our server: brightsocket.js and the stock client, from the server's own origin and from others.
import assert from "node:assert/strict";
import test from "node:test";
import { openPage, watchTransports } from "./launch.mjs";

const { home, friend, foreign } = JSON.parse(process.env.ORIGINS);

/** A page of an origin, with brightsocket.js from the API, and helpers for the functions that run in it. */
async function visit(suite, origin) {
  const page = await openPage(suite);
  await page.goto(origin);
  await page.evaluate(async (home) => {
    window.HOME = home;
    window.load = () => import(`${home}/socket.io/brightsocket.js`);
    window.next = (client, action) => new Promise((resolve) => {
      const stop = client.receive(action, (...values) => { stop(); resolve(values); });
    });
    window.heard = (socket, event) => new Promise((resolve) => socket.once(event, resolve));
    window.bytes = (value) => value && [...new Uint8Array(value)];
  }, home);
  return page;
}

test("brightsocket.js and our server", async (suite) => {
  const page = await visit(suite, home);
  await page.evaluate(async () => {
    window.module = await load();
    window.brightsocket = module.default;
  });
  const run = (function_) => page.evaluate(function_);

  await suite.test("it finds the server that it came from, and is let in with its identity", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      const connection = await api.connect("GUEST", { name: "Ada", no: false });
      const welcome = await next(api, "WELCOME");
      const result = [connection.channel, connection.open, api.channel, welcome];
      await api.disconnect();
      return [...result, connection.open, (await connection.closed).code];
    }), ["GUEST", true, "GUEST", [{ name: "Ada", no: false }], false, "closed"]);
  });

  await suite.test("a program for the original client works as it is", async () => {
    assert.deepEqual(await run(() => new Promise((resolve) => {
      const log = [];
      const socket = brightsocket();
      socket.connect("GUEST", { n: 1 }, () => {
        socket.receive("WELCOME", ({ n }) => {
          log.push(`welcome ${n}`);
          if (n === 1) socket.connect("GUEST", { n: 2 }, () => { log.push("switched"); });
          else socket.send("ECHO");
        });
        socket.receive("ECHOED", (nothing) => {
          socket.disconnect();
          resolve([...log, nothing ?? "nothing"]);
        });
      });
      socket.send("IGNORED", "sent before the server has let us in");
    })), ["welcome 1", "switched", "welcome 2", "nothing"]);
  });

  await suite.test("every JSON value arrives as it is, both ways", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      await api.connect("GUEST");
      const wrong = [];
      for (const values of [[0], [false], [""], [[]], [null], [], [1, "two"], ["\u2028 🎉 \0"], [{ a: [{ b: 1.5 }] }]]) {
        const echoed = next(api, "ECHOED");
        api.send("ECHO", ...values);
        if (JSON.stringify(await echoed) !== JSON.stringify(values)) wrong.push(values);
      }
      await api.disconnect();
      return wrong;
    }), []);
  });

  await suite.test("binary data arrives, both ways, in events, calls and answers", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      await api.connect("GUEST");
      const echoed = next(api, "ECHOED");
      const large = new Uint8Array(100_000).map((_, n) => n % 251);
      api.send("ECHO", { one: new Uint8Array([1, 2]), more: [new ArrayBuffer(0), large.buffer] });
      const [{ one, more: [empty, same] }] = await echoed;
      const isSame = bytes(same).every((byte, n) => byte === large[n]) && same.byteLength === large.length;
      const part = await api.call("ASK", new Uint8Array([7, 8]).subarray(1));
      const blob = await api.call("ASK", new Blob([new Uint8Array([6])]));
      api.receive("QUESTION", (question) => new Uint8Array([...bytes(question), 5]));
      const answered = next(api, "ANSWERED");
      api.send("ASK_ME", new Uint8Array([4]));
      const [answer] = await answered;
      await api.disconnect();
      return [...[one, empty, part, blob, answer].map(bytes), isSame];
    }), [[1, 2], [], [8], [6], [4, 5], true]);
  });

  await suite.test("calls are answered, both ways", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      await api.connect("GUEST");
      api.receive("QUESTION", async (question) => question + 1);
      const answered = next(api, "ANSWERED");
      api.send("ASK_ME", 41);
      const answers = await Promise.all([api.call("ASK"), api.call("ASK", 1), api.call("ASK", 1, 2), answered]);
      await api.disconnect();
      return answers.map((answer) => answer ?? "nothing");
    }), ["nothing", 1, [1, 2], [42]]);
  });

  await suite.test("a refusal rejects with the reason; the client can try elsewhere", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      const results = [];
      for (const [channel, identity] of [["REFUSER"], ["UNKNOWN"], ["/chat", { token: "bad" }], ["/nowhere"]]) {
        const error = await api.connect(channel, identity).catch((error) => error);
        results.push([error instanceof module.Refused, error instanceof Error, error.channel, api.channel]);
        if (channel !== "UNKNOWN" && channel !== "/nowhere") results.push([error.message, error.data ?? "no data"]);
      }
      await api.connect("/chat", { token: "good" });
      results.push(await api.call("ASK", "hi"));
      await api.disconnect();
      return results;
    }), [
      [true, true, "REFUSER", null], ["not you", "no data"],
      [true, true, "UNKNOWN", null],
      [true, true, "/chat", null], ["bad token", { tries: 1 }],
      [true, true, "/nowhere", null],
      "hi",
    ]);
  });

  await suite.test("a second connect ends the first connection before it opens the next", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      const everywhere = [];
      api.receive("HEARD", (name) => everywhere.push(name));
      const one = await api.connect("ONE");
      const onlyOne = [];
      one.receive("HEARD", (name) => onlyOne.push(name));
      let heard = next(one, "HEARD");
      api.send("TALK");
      await heard;
      for (let n = 0; n < 100; n += 1) api.send("TALK"); // what comes back of it is for nobody
      const two = await api.connect("TWO");
      everywhere.length = onlyOne.length = 0;
      const [history] = await next(two, "HISTORY");
      heard = next(two, "HEARD");
      api.send("TALK");
      await heard;
      let stale;
      try { one.send("TALK"); } catch (error) { stale = `${error.name}: ${error.code}`; }
      await api.disconnect();
      return { history, everywhere, onlyOne, stale, end: (await one.closed).code };
    }), {
      history: ["ONE opened", "ONE over", "TWO opened"],
      everywhere: ["TWO"],
      onlyOne: [],
      stale: "Disconnected: superseded",
      end: "superseded",
    });
  });

  await suite.test("actions wait for their receivers, and what is sent early waits for the server", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      const letIn = api.connect("GUEST");
      const early = api.call("ASK", "early");
      for (let n = 0; n < 2; n += 1) api.send("ECHO", n);
      const connection = await letIn;
      const result = [await early];
      await api.call("ECHO", 2); // answered after it, and those before it, were echoed
      const [first, second] = [[], []];
      api.receive("ECHOED", (n) => first.push(n));
      connection.receive("ECHOED", (n) => second.push(n));
      result.push(first.length);
      await api.call("ECHO", 3);
      await api.disconnect();
      return [...result, first, second];
    }), ["early", 0, [0, 1, 2, 3], [0, 1, 2, 3]]);
  });

  await suite.test("what waits is bounded: the oldest goes, with a warning", async () => {
    const warnings = [];
    page.on("console", (message) => warnings.push(message.text()));
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      await api.connect("GUEST");
      await next(api, "WELCOME");
      await Promise.all(Array.from({ length: 1_002 }, (_, n) => api.call("ECHO", n)));
      const values = [];
      api.receive("ECHOED", (n) => values.push(n));
      await api.call("ASK");
      await api.disconnect();
      return [values.length, values[0], values.at(-1)];
    }), [1_000, 2, 1_001]);
    assert.equal(warnings.filter((text) => text.endsWith("dropped the oldest, ECHOED")).length, 2);
  });

  await suite.test("an end that the server makes is told, with its reason", async () => {
    assert.deepEqual(await run(async () => {
      const api = brightsocket();
      await api.connect("GUEST");
      const ended = new Promise((resolve) => { api.onclose = resolve; });
      const call = api.call("NOBODY_ANSWERS").catch((error) => error.message);
      api.send("THROW_OUT");
      const end = await ended;
      return [end.name, end.message, await call, api.channel];
    }), ["Disconnected", "no such noise in here", "no such noise in here", null]);
  });
});

test("the stock client and our server", async (suite) => {
  for (const [title, transports, expected] of [
    ["polling, then an upgrade", ["polling", "websocket"], ["polling", "websocket"]],
    ["polling alone", ["polling"], ["polling"]],
    ["WebSocket alone", ["websocket"], ["websocket"]],
  ]) {
    await suite.test(title, async (suite) => {
      const page = await visit(suite, home);
      const seen = watchTransports(page);
      assert.deepEqual(await page.evaluate(async (transports) => {
        const socket = io("/chat", { auth: { token: "good" }, transports, forceNew: true });
        const upgraded = transports.length > 1 ? heard(socket.io.engine, "upgrade") : null;
        await heard(socket, "connect");
        const early = await socket.emitWithAck("ASK", "hello");
        await upgraded;
        const binary = bytes(await socket.timeout(20_000).emitWithAck("ASK", new Uint8Array([1, 2])));
        socket.on("QUESTION", (question, answer) => answer(new Uint8Array([...bytes(question), 9])));
        const answered = heard(socket, "ANSWERED");
        socket.emit("ASK_ME", new Uint8Array([8]));
        const result = [early, binary, bytes(await answered), socket.io.engine.transport.name];
        socket.disconnect();
        return result;
      }, transports), ["hello", [1, 2], [8, 9], transports.at(-1)]);
      assert.deepEqual(seen(), expected);
    });
  }

  await suite.test("it is refused, with the reason and the data", async (suite) => {
    const page = await visit(suite, home);
    assert.deepEqual(await page.evaluate(async () => {
      const socket = io("/chat", { auth: { token: "bad" }, forceNew: true });
      const error = await heard(socket, "connect_error");
      socket.disconnect();
      return [error.message, error.data];
    }), ["bad token", { tries: 1 }]);
  });
});

test("pages of other origins", async (suite) => {
  await suite.test("one that is allowed uses both clients, all transports, and cookies", async (suite) => {
    const page = await visit(suite, friend);
    const seen = watchTransports(page);
    const results = await page.evaluate(async () => {
      document.cookie = "flavour=oat";
      const { default: brightsocket } = await load();
      const api = brightsocket();
      await api.connect("GUEST");
      const results = [await api.call("COOKIES")];
      await api.disconnect();
      for (const transports of [["polling"], ["websocket"], ["polling", "websocket"]]) {
        const socket = io(`${HOME}/chat`, { auth: { token: "good" }, transports, withCredentials: true, forceNew: true });
        const upgraded = transports.length > 1 ? heard(socket.io.engine, "upgrade") : null;
        results.push(await socket.timeout(20_000).emitWithAck("COOKIES"));
        await upgraded;
        results.push(await socket.timeout(20_000).emitWithAck("ASK", transports.join()));
        socket.disconnect();
      }
      return results;
    });
    const cookies = { flavour: "oat" };
    assert.deepEqual(results, [
      cookies, cookies, "polling", cookies, "websocket", cookies, "polling,websocket",
    ]);
    assert.deepEqual(seen(), ["polling", "websocket"]);
  });

  await suite.test("one that is not allowed gets nothing", async (suite) => {
    const page = await visit(suite, foreign);
    assert.deepEqual(await page.evaluate(async () => {
      const results = [await load().then(() => "loaded", (error) => error.name)];
      const { default: brightsocket } = await import("/socket.io/brightsocket.js"); // its own server's
      results.push(await brightsocket(HOME).connect("GUEST").catch((error) => error.code));
      for (const transport of ["polling", "websocket"]) {
        const socket = io(`${HOME}/chat`, { auth: { token: "good" }, transports: [transport], forceNew: true });
        results.push((await heard(socket, "connect_error")).message);
        socket.disconnect();
      }
      return results;
    }), ["TypeError", "unreachable", "xhr poll error", "websocket error"]);
  });
});

test("a server that goes away", async (suite) => {
  const page = await visit(suite, home);
  await page.evaluate(async () => {
    const { default: brightsocket } = await load();
    const api = brightsocket();
    await api.connect("GUEST");
    const socket = io("/chat", { auth: { token: "good" }, transports: ["polling"], reconnection: false });
    await heard(socket, "connect");
    window.told = Promise.all([new Promise((resolve) => { api.onclose = resolve; }), heard(socket, "disconnect")]);
  });
  process.kill(Number(process.env.SERVER_PID), "SIGINT");
  assert.deepEqual(await page.evaluate(async () => {
    const [end, reason] = await told;
    return [end.name, end.message, reason];
  }), ["Disconnected", "the server is shutting down", "transport close"]);
});
