'use strict';
/** Runs the original's client against the original's server and keeps what both print, in expected/. */
const { spawn } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const path = require('path');
const readline = require('readline');

const scenarios = [
  'identify', 'identity', 'send_and_receive', 'filter', 'filter_of_two_receivers', 'extends', 'login', 'reidentify',
  'upgrade', 'disconnect',
];

function start(file, generation, ...args) {
  const child = spawn(process.execPath, [path.join(__dirname, file), ...args], {
    env: { ...process.env, SOCKETIO: generation },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  return { child, lines: readline.createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
}

async function rest(lines) {
  const seen = [];
  for await (const line of lines) {
    seen.push(JSON.parse(line));
  }
  return seen;
}

async function run(generation, scenario) {
  const server = start('server.js', generation);
  const { port } = JSON.parse((await server.lines.next()).value);
  const client = start('client.js', generation, `http://127.0.0.1:${port}`, scenario);
  const seen = await rest(client.lines);
  server.child.stdin.end();
  return { client: seen, server: await rest(server.lines) };
}

async function main() {
  for (const generation of ['1', '2']) {
    const outcomes = {};
    for (const scenario of scenarios) {
      outcomes[scenario] = await run(generation, scenario);
    }
    const file = path.join(__dirname, 'expected', `${generation}.json`);
    fs.writeFileSync(file, `${JSON.stringify(outcomes, null, 2)}\n`);
  }
}

main();
