// The login example's page in Chromium, as a person uses it. The server runs already; its process is SERVER_PID.
// CLIENT says by which client: brightsocket.js, or the stock one with these transports.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { openPage, watchTransports } from "./launch.mjs";

const { CLIENT, URL: url, USERNAME, PASSWORD, SERVER_PID, SCREENSHOTS } = process.env;
const OURS = CLIENT === "brightsocket.js";

const status = (page, text) => page.getByRole("status").filter({ hasText: text }).waitFor();
const current = (page) => page.locator(".channels [aria-current]").allTextContents();
const steps = (page) => page.locator("#steps li").allTextContents();
const message = (page, text) => page.getByRole("log").getByRole("listitem").filter({ hasText: text }).waitFor();

async function logIn(page, password) {
  await page.getByLabel("User name").fill(USERNAME);
  await page.getByLabel("Password").fill(password);
  await page.getByRole("button", { name: "Log in" }).click();
}

async function picture(page, name) {
  if (SCREENSHOTS) await page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true });
}

/** Have the page find the stock client where it looks for brightsocket.js. */
async function replaceModule(page) {
  const contentType = "text/javascript";
  const client = await readFile("stock-client.mjs", "utf8");
  const body = client.replace("TRANSPORTS,", `${JSON.stringify(CLIENT.split(","))},`);
  await page.route("**/socket.io/brightsocket.js", (route) => route.fulfill({ contentType, body }));
  const path = "node_modules/socket.io-client/dist/socket.io.esm.min.js";
  await page.route("**/stock/*.js", (route) => route.fulfill({ contentType, path }));
}

/** Call a function with the token of each login that a page is sent. */
function watchLogins(page, found) {
  const look = (text) => {
    const [, data] = /42\["LOGGED_IN",(\{[^}]*\})/.exec(text) ?? [];
    if (data) found(JSON.parse(data).token);
  };
  page.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => look(String(payload))));
  page.on("response", async (response) => {
    if (response.url().includes("transport=polling")) look(await response.text().catch(() => "")); // or it was cut off
  });
}

test("the login page", async (suite) => {
  const page = await openPage(suite, { colorScheme: "light" });
  const other = await openPage(suite, { colorScheme: "dark", viewport: { width: 390, height: 844 } });
  const transports = watchTransports(page);
  let token;
  watchLogins(page, (found) => { token = found; });
  if (!OURS) for (const visitor of [page, other]) await replaceModule(visitor);

  await suite.test("a visitor is a guest", async () => {
    for (const visitor of [page, other]) {
      await visitor.goto(url);
      await status(visitor, "You are on the GUEST channel.");
      assert.deepEqual(await current(visitor), ["GUEST"]);
      assert.equal(await visitor.locator(":focus").getAttribute("id"), "username");
      assert.equal(await visitor.getByRole("heading", { name: "Administration" }).isVisible(), false);
    }
    await picture(page, "guest");
  });

  await suite.test("a wrong password says so, and changes nothing", async () => {
    await logIn(page, "not the password");
    await page.getByRole("alert").filter({ hasText: "Unknown user name or wrong password." }).waitFor();
    assert.equal(await page.getByLabel("Password").getAttribute("aria-invalid"), "true");
    assert.equal(await page.locator(":focus").getAttribute("id"), "password");
    assert.deepEqual(await current(page), ["GUEST"]);
    await picture(page, "wrong-password");
  });

  await suite.test("the right one moves from GUEST to ADMIN", async () => {
    await logIn(page, PASSWORD);
    await status(page, "Logged in. You are on the ADMIN channel.");
    assert.deepEqual(await current(page), ["ADMIN"]);
    assert.equal(await page.locator(":focus").getAttribute("id"), "admin-heading");
    assert.equal(await page.getByLabel("Password").isVisible(), false);
    assert.deepEqual(await steps(page), [
      'connect("GUEST")',
      "GUEST has let us in",
      'send("LOG_IN")',
      "received LOGIN_FAILED",
      'send("LOG_IN")',
      "received LOGGED_IN",
      'connect("ADMIN")',
      "ADMIN has let us in",
    ]);
  });

  await suite.test("an administrator lists the users", async () => {
    await page.getByRole("button", { name: "List users" }).click();
    await page.getByRole("row", { name: `${USERNAME} ADMIN` }).waitFor();
  });

  await suite.test("what an administrator says arrives on every page, as text", async () => {
    const text = "Grüße & <b>hello</b> 🎉";
    await page.getByLabel("Message to everyone").fill(text);
    await page.getByRole("button", { name: "Send" }).click();
    for (const reader of [page, other]) await message(reader, `${USERNAME} ${text}`);
    await picture(page, "admin");
    await picture(other, "other");
  });

  await suite.test("logging out leads back to GUEST, and makes the token useless", async () => {
    await page.getByRole("button", { name: "Log out" }).click();
    await status(page, "Logged out. You are on the GUEST channel.");
    assert.deepEqual(await current(page), ["GUEST"]);
    assert.equal(await other.evaluate(async (token) => {
      const { default: brightsocket } = await import("/socket.io/brightsocket.js");
      return brightsocket().connect("ADMIN", { token }).catch((error) => `${error.name}: ${error.message}`);
    }, token), "Refused: You have logged out. Log in again.");
  });

  await suite.test("an action with a token that is good no longer leads back to GUEST, with the reason", async () => {
    await logIn(page, PASSWORD);
    await status(page, "Logged in. You are on the ADMIN channel.");
    await other.evaluate(async (token) => {
      const { default: brightsocket } = await import("/socket.io/brightsocket.js");
      const elsewhere = brightsocket();
      await elsewhere.connect("ADMIN", { token });
      await elsewhere.call("LOG_OUT");
      await elsewhere.disconnect();
    }, token);
    await page.getByRole("button", { name: "List users" }).click();
    await status(page, "You have logged out. Log in again. You are on the GUEST channel.");
    assert.ok((await steps(page)).includes("received UNAUTHORIZED"));
  });

  await suite.test("all of it went over these transports", () => {
    assert.deepEqual(transports(), OURS ? ["websocket"] : CLIENT.split(","));
  });

  await suite.test("a server that goes away is noticed", async () => {
    process.kill(Number(SERVER_PID), "SIGINT");
    for (const visitor of [page, other]) {
      await status(visitor, "Not connected");
      assert.deepEqual(await current(visitor), []);
      await visitor.getByRole("button", { name: "Connect again" }).waitFor();
    }
    await picture(page, "lost");
  });
});
