'use strict';
/**
 * A stock client: `SOCKETIO=4 node stock.js URL`. Goes through what stock clients do, one thing after the other, and prints
 * a JSON line for each thing that it sees; once its sockets are closed nothing is left to do, so Node exits.
 */
const generation = process.env.SOCKETIO;
const io = require(`socket.io-client-${generation}`);

const url = process.argv[2];
const transports = process.env.TRANSPORTS ? process.env.TRANSPORTS.split(',') : ['polling', 'websocket'];
const modern = generation >= '3';

/** Bytes, which some transports give as an ArrayBuffer, in a form that can be printed. */
function readable(value) {
  if (value instanceof ArrayBuffer || Buffer.isBuffer(value)) {
    return { bytes: Buffer.from(value).toString('hex') };
  }
  if (Array.isArray(value)) {
    return value.map(readable);
  }
  return value && typeof value === 'object'
    ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, readable(each)]))
    : value;
}

const see = (...what) => console.log(JSON.stringify(readable(what)));

/** What Socket.IO 3 and 4 call auth is the namespace's query in the generations before. */
function open(namespace, auth) {
  return modern
    ? io(url + namespace, { transports, auth })
    : io(`${url}${namespace}?${new URLSearchParams(auth)}`, { transports });
}

const event = (socket, name) => new Promise((resolve) => { socket.once(name, (...args) => resolve(args)); });
const call = (socket, ...args) => new Promise((resolve) => { socket.emit(...args, (...answer) => resolve(answer)); });

/** Send numbers, some with bytes, and get each back, twenty under way at a time: a hundred, and more until the upgrade is over. */
function count(socket, upgraded) {
  let [sent, back, last] = [0, 0, upgraded ? Infinity : 100];
  const send = () => {
    socket.emit('NUMBER', sent, sent % 10 ? 'ÿ🚀' : Buffer.from([sent % 256]));
    sent += 1;
  };
  return new Promise((resolve) => {
    Promise.resolve(upgraded).then(() => { last = Math.max(100, sent + 20); });
    socket.on('NUMBER', (number, extra) => {
      if (number !== back || readable(extra).bytes !== (number % 10 ? undefined : readable(Buffer.from([number % 256])).bytes)) {
        see('not in order', number, back, extra);
      }
      back += 1;
      if (sent < last) {
        send();
      } else if (back === sent) {
        resolve();
      }
    });
    for (let i = 0; i < 20; i += 1) {
      send();
    }
  });
}

async function acknowledgements(socket) {
  see('one value', ...(await call(socket, 'ADD', 1, 2)));
  see('no value', ...(await call(socket, 'SILENT')));
  see('nothing', ...(await call(socket, 'NOTHING')));
  const values = [0, '', false, null, [], {}, -1.5, 'Grüße ÿþ 𝒳 🚀 \u2028 \0 "', { ÿ: ['🚀'] }];
  see('several values', ...(await call(socket, 'ECHO', ...values)));
  for (const value of values.slice(0, 5)) {
    see('falsy value', ...(await call(socket, 'ECHO', value)));
  }
  see('bytes', ...(await call(socket, 'ECHO', { deep: [Buffer.from([1, 2]), { er: Buffer.from([3]) }], n: 1 }, Buffer.alloc(0))));
  const sizes = [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 200000];
  for (const size of sizes) {
    const sent = Buffer.alloc(size, size % 251);
    const [received] = await call(socket, 'ECHO', sent);
    if (!sent.equals(Buffer.from(received))) {
      see('other bytes', size);
    }
  }

  // the server calls
  for (const question of [[], [0], [null], [''], ['the answer', 'is', 42], [{ some: Buffer.from([9, 8]) }, 'bytes']]) {
    const told = event(socket, 'TOLD');
    socket.emit('ASK_ME', ...question);
    see('told', ...(await told));
  }
}

async function timeouts(socket) {
  see('in time', ...(await new Promise((resolve) => {
    socket.timeout(60000).emit('ADD', 2, 3, (...answer) => resolve(answer));
  })));
  const [late] = await new Promise((resolve) => { socket.timeout(20).emit('NEVER', (...answer) => resolve(answer)); });
  see('too late', late.message);
  see('promised', await socket.emitWithAck('ADD', 3, 4), await socket.timeout(60000).emitWithAck('ADD', 4, 5));
  await socket.timeout(20).emitWithAck('NEVER').catch((error) => see('promised too late', error.message));
}

async function main() {
  // in the older generations every client is on the main namespace from the start
  const main = io(url, { transports });
  const welcome = event(main, 'WELCOME');
  const chat = open('/chat', { name: 'Ada' });
  const { engine } = chat.io;
  const upgraded = transports.length > 1 && event(engine, 'upgrade');
  chat.on('ASK', (...args) => args.pop()(...args));
  await event(chat, 'connect');
  see('connected to /chat');
  await count(chat, upgraded);
  see('transport', engine.transport.name);
  await acknowledgements(chat);
  if (generation === '4') {
    await timeouts(chat);
  }

  // more namespaces on the same session
  const news = open('/news', {});
  await event(news, 'connect');
  news.emit('HELLO');
  see('news', ...(await event(news, 'HEADLINE')));

  const secret = open('/secret', { password: 'guess' });
  const [error] = await event(secret, modern ? 'connect_error' : 'error');
  see('refused', ...(modern ? [error.message, error.data] : [error]));

  const unknown = open('/unknown', {});
  const [failure] = await event(unknown, modern ? 'connect_error' : 'error');
  see('refused', modern ? failure.message : failure);

  // one that names its channel on the main namespace, and another one
  see('main', ...(await welcome));
  for (const channel of ['GUEST', 'MEMBER']) {
    main.emit('BRIGHTSOCKET:IDENTIFY', { 'BRIGHTSOCKET:CHANNEL': channel, name: 'Ada' });
    await event(main, 'BRIGHTSOCKET:IDENTIFIED');
    see('main', ...(await call(main, 'WHERE')));
  }

  // of all of these, one goes at a time
  const fragile = open('/fragile', {});
  await event(fragile, 'connect');
  const why = event(fragile, 'BRIGHTSOCKET:CLOSED');
  const gone = event(fragile, 'disconnect');
  fragile.emit('CRASH');
  see('failed', ...(await why), (await gone)[0]);
  see('still there', ...(await call(chat, 'ADD', 5, 6)), ...(await call(news, 'PING')));

  chat.disconnect();
  see('still there', ...(await call(news, 'CHAT_IS_LEFT')), ...(await call(main, 'WHERE')));

  news.emit('END_ME');
  see('ended', (await event(news, 'disconnect'))[0]);
  see('still there', ...(await call(main, 'WHERE')));

  [main, secret, unknown].forEach((socket) => socket.disconnect());
}

main();
