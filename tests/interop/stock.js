'use strict';
/**
 * A stock client: `SOCKETIO=4 node stock.js URL`. Goes through what stock clients do, one thing after the other, and prints
 * a JSON line for each thing that it sees; once its sockets are closed nothing is left to do, so Node exits.
 */
const generation = process.env.SOCKETIO;
const io = require(`socket.io-client-${generation}`);

const url = process.argv[2];
const transports = process.env.TRANSPORTS ? process.env.TRANSPORTS.split(',') : ['polling', 'websocket'];
const see = (...what) => console.log(JSON.stringify(what));

/** What Socket.IO 4 calls auth is the namespace's query in the generations before. */
function open(namespace, auth) {
  if (generation === '4') {
    return io(url + namespace, { transports, auth });
  }
  return io(`${url}${namespace}?${new URLSearchParams(auth)}`, { transports });
}

const event = (socket, name) => new Promise((resolve) => { socket.once(name, (...args) => resolve(args)); });
const call = (socket, ...args) => new Promise((resolve) => { socket.emit(...args, (...answer) => resolve(answer)); });

async function main() {
  const chat = open('/chat', { name: 'Ada' });
  const { engine } = chat.io;
  const upgraded = transports.length > 1 && event(engine, 'upgrade');
  await event(chat, 'connect');
  see('connected to /chat');

  see('answer', ...(await call(chat, 'ADD', 1, 2)));
  see('empty answer', ...(await call(chat, 'SILENT')));

  chat.on('ASK', (question, answer) => answer(question, 'is', 42));
  chat.emit('ASK_ME');
  see('told', ...(await event(chat, 'TOLD')));

  const [bytes, more] = await call(chat, 'REVERSE', { bytes: Buffer.from([1, 2, 3]) }, Buffer.from([4, 5]));
  see('bytes', Buffer.from(bytes.bytes).toString('hex'), Buffer.from(more).toString('hex'));

  // all of that may have been polled; what follows comes by the transport that the client settles on
  await upgraded;
  see('transport', engine.transport.name);
  const [again] = await call(chat, 'REVERSE', { bytes: Buffer.from([6, 7]) }, Buffer.alloc(0));
  see('bytes', Buffer.from(again.bytes).toString('hex'));

  // a second namespace on the same session
  const news = open('/news', {});
  await event(news, 'connect');
  news.emit('HELLO');
  see('news', ...(await event(news, 'HEADLINE')));

  const secret = open('/secret', { password: 'guess' });
  const [error] = await event(secret, generation === '4' ? 'connect_error' : 'error');
  see('refused', error.message || error, error.data);

  const unknown = open('/unknown', {});
  const [failure] = await event(unknown, generation === '4' ? 'connect_error' : 'error');
  see('refused', failure.message || failure);

  // one namespace goes, the other stays
  chat.disconnect();
  see('still there', ...(await call(news, 'PING')));

  news.emit('END_ME');
  see('ended', ...(await event(news, 'disconnect')));

  const plain = io(url, { transports, forceNew: true });
  plain.on('WELCOME', (text) => see('plain', text));
  await event(plain, 'connect');
  see('plain answer', ...(await call(plain, 'ECHO', 'Zürich 🚀')));
  plain.disconnect();
  [secret, unknown].forEach((socket) => socket.disconnect());
}

main();
