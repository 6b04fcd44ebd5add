// Starts Chromium for a test, with nothing but the test's own traffic, and a page whose failures are the test's.
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

/** Open a page in a browser of its own, which is closed when the test is over. Playwright gives it a fresh profile. */
export async function openPage(test, options = {}) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ARGUMENTS });
  test.after(() => browser.close());
  const context = await browser.newContext(options);
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  page.on("pageerror", (error) => { throw error; });
  return page;
}
