// The page: everything that it knows of the wire is in brightsocket.js.
import brightsocket from "/socket.io/brightsocket.js";

const SHOWN = 100; // lines kept in each list

const $ = (id) => document.getElementById(id);
const client = brightsocket();

let reason = ""; // why a login ended, to be said when we are back at the door

/** Go to a channel and show its part of the page. */
async function go(channel, identity) {
  step(`connect("${channel}")`);
  try {
    await client.connect(channel, identity);
  } catch (error) {
    step(`${error.name}: ${error.message}`);
    if (error.name === "Refused" && channel !== "GUEST") return leave(error.message);
    if (error.code !== "superseded") show(null, `Not connected: ${error.message}.`);
    return;
  }
  step(`${channel} has let us in`);
  if (channel === "GUEST") {
    show("GUEST", `${reason} You are on the GUEST channel.`.trim());
    reason = "";
    $("username").focus();
  } else {
    show(channel, `Logged in. You are on the ${channel} channel.`);
    $("admin-heading").focus();
  }
}

/** Go back to the door, and say why. */
function leave(why) {
  reason = why;
  return go("GUEST");
}

function show(channel, status) {
  $("status").textContent = status;
  $("status").toggleAttribute("data-lost", channel === null);
  $("reconnect").hidden = channel !== null;
  for (const name of ["GUEST", "ADMIN"]) {
    const here = channel === name;
    $(name.toLowerCase()).hidden = !here;
    if (here) $(`channel-${name.toLowerCase()}`).setAttribute("aria-current", "true");
    else $(`channel-${name.toLowerCase()}`).removeAttribute("aria-current");
  }
  failed("");
  $("login").reset();
  $("users").hidden = true;
}

function failed(text) {
  $("login-error").textContent = text;
  $("password").setAttribute("aria-invalid", String(text !== ""));
}

function append(list, ...content) {
  const item = document.createElement("li");
  item.append(...content);
  list.append(item);
  while (list.children.length > SHOWN) list.firstElementChild.remove();
  list.scrollTop = list.scrollHeight;
}

function step(text) {
  const code = document.createElement("code");
  code.textContent = text;
  append($("steps"), code);
}

client.receive("LOGGED_IN", ({ userType, token }) => {
  step("received LOGGED_IN");
  return go(userType, { token });
});

client.receive("LOGIN_FAILED", ({ reason: why }) => {
  step("received LOGIN_FAILED");
  failed(why);
  $("password").select();
});

client.receive("UNAUTHORIZED", ({ reason: why }) => {
  step("received UNAUTHORIZED");
  return leave(why);
});

client.receive("MESSAGE", ({ from, text }) => {
  const name = document.createElement("strong");
  name.textContent = from;
  append($("messages"), name, ` ${text}`);
});

client.onclose = (end) => {
  step(`${end.name}: ${end.message}`);
  show(null, `Not connected: ${end.message}.`);
};

/** Have an event do something on the server; a connection that ends meanwhile is told by onclose. */
function on(id, event, action) {
  $(id).addEventListener(event, async (occurrence) => {
    occurrence.preventDefault();
    try {
      await action();
    } catch (error) {
      if (error.code !== "superseded") step(`${error.name}: ${error.message}`);
    }
  });
}

on("login", "submit", () => {
  failed("");
  step('send("LOG_IN")');
  client.send("LOG_IN", { username: $("username").value, password: $("password").value });
});

on("list", "click", async () => {
  step('call("LIST_USERS")');
  const users = await client.call("LIST_USERS");
  $("users").tBodies[0].replaceChildren(...users.map(({ name, user_type }) => {
    const row = document.createElement("tr");
    for (const text of [name, user_type]) row.insertCell().textContent = text;
    return row;
  }));
  $("users").hidden = false;
});

on("say", "submit", () => {
  step('send("MESSAGE")');
  client.send("MESSAGE", $("text").value);
  $("text").value = "";
});

on("logout", "click", async () => {
  step('call("LOG_OUT")');
  await client.call("LOG_OUT");
  await leave("Logged out.");
});

on("reconnect", "click", () => go("GUEST"));

go("GUEST");
