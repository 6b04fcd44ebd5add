'use strict';
/**
 * permessage-deflate by the stock packages and their WebSocket, `ws`: `SOCKETIO=4 node deflate.js URL` is a client, which
 * prints the extensions that it got and what became of its texts; without a URL it is a server, which prints its port,
 * answers ECHO and EXTENSIONS, and serves until its input ends.
 */
const generation = process.env.SOCKETIO;
const url = process.argv[2];
const perMessageDeflate = { threshold: 1024 };

function serve() {
  const http = require('http').createServer();
  const socketIo = require(`socket.io-${generation}`);
  const io = generation >= '3' ? new socketIo.Server(http, { perMessageDeflate }) : socketIo(http, { perMessageDeflate });
  io.on('connection', (socket) => {
    socket.on('ECHO', (...args) => args.pop()(...args));
    socket.on('EXTENSIONS', (answer) => {
      const { ws, socket: older } = socket.conn.transport;
      answer(Object.keys((ws || older)._extensions));
    });
  });
  http.listen(0, '127.0.0.1', () => console.log(http.address().port));
  process.stdin.resume().on('end', () => process.exit());
}

function visit() {
  const socket = require(`socket.io-client-${generation}`)(`${url}/echo`, { transports: ['websocket'], perMessageDeflate });
  const texts = [...Array(50).keys()].map((n) => String.fromCharCode(97 + (n % 26)).repeat(n * 1000));
  socket.on('connect', () => {
    console.log(JSON.stringify(['extensions', socket.io.engine.transport.ws.extensions.split(';')[0]]));
    let left = texts.length;
    texts.forEach((text) => socket.emit('ECHO', text, Buffer.from(text), (answer, bytes) => {
      if (answer !== text || Buffer.from(bytes).toString() !== text) {
        console.log(JSON.stringify(['not', text.length]));
      }
      left -= 1;
      if (!left) {
        console.log(JSON.stringify(['all came back']));
        socket.disconnect();
      }
    }));
  });
}

if (url) {
  visit();
} else {
  serve();
}
