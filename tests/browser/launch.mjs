// Starts Chromium for a test file, with nothing but the tests' own traffic, and pages whose failures are the tests'.
import { after } from "node:test";
import { chromium } from "playwright-core";

const ARGUMENTS = [
  "--no-sandbox", // Chromium will not run as root otherwise, as it does in most containers
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ARGUMENTS });
after(() => browser.close());

/** Open a page that shares nothing with other pages (cookies, cache), and is closed when the test is over. */
export async function openPage(test, options = {}) {
  const context = await browser.newContext(options);
  test.after(() => context.close());
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  page.on("pageerror", (error) => { throw error; });
  return page;
}

/** Note the Engine.IO transports of a page's sessions, as the network shows them; returns what tells their names. */
export function watchTransports(page) {
  const seen = new Set();
  page.on("request", (request) => {
    if (/[?&]transport=polling/.test(request.url())) seen.add("polling");
  });
  page.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => {
    if (payload !== "3probe") seen.add("websocket"); // what comes after the probe is the session's own
  }));
  return () => [...seen].sort();
}
