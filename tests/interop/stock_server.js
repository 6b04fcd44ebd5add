'use strict';
/**
 * A stock server: `SOCKETIO=4 node stock_server.js`. Prints its port, and serves until its input ends. What it does is
 * told to it by its clients; python_server.py does the same.
 */
const generation = process.env.SOCKETIO;
const http = require('http').createServer();
const options = { pingInterval: 25000, pingTimeout: 20000 };
if (process.env.RECOVERY) {
  Object.assign(options, { connectionStateRecovery: { maxDisconnectionDuration: 120000 }, pingInterval: 500, pingTimeout: 500 });
}
const socketIo = require(`socket.io-${generation}`);
const io = generation >= '3' ? new socketIo.Server(http, options) : socketIo(http, options);

const departures = {};
const waiting = {};

/** Why a socket, which had given itself a name, has left, once it has. */
function departed(name, reason) {
  departures[name] = reason;
  (waiting[name] || []).forEach((tell) => tell(reason));
}

function serve(socket) {
  let name;
  let numbers = 0;
  socket.on('disconnect', (reason) => departed(name, reason));
  socket.on('NAME', (given, answer) => { name = given; answer(); });
  socket.on('WHY_LEFT', (other, answer) => {
    if (other in departures) {
      answer(departures[other]);
    } else {
      (waiting[other] = waiting[other] || []).push(answer);
    }
  });

  socket.on('ADD', (a, b, answer) => answer(a + b));
  socket.on('SILENT', (answer) => answer());
  socket.on('ECHO', (...args) => args.pop()(...args));
  socket.on('EMIT_BACK', (...args) => socket.emit('BACK', ...args));
  socket.on('ASK_ME', (...question) => {
    socket.emit('ASK', ...question, (...answer) => socket.emit('TOLD', ...answer));
  });
  socket.on('NUMBER', (number, extra) => {
    if (number !== numbers) {
      socket.emit('DISORDER', number, numbers);
    }
    numbers += 1;
    socket.emit('NUMBER', number, extra);
  });
  socket.on('AUTH', (answer) => answer(generation >= '3' ? socket.handshake.auth : socket.handshake.query));
  socket.on('TRANSPORT', (answer) => answer(socket.conn.transport.name));
  socket.on('END_ME', () => { socket.emit('LAST', 1); socket.disconnect(); });
  socket.on('END_US', () => { socket.emit('LAST', 1); socket.disconnect(true); });

  // connection state recovery, of Socket.IO 4.6 and newer
  const number = (count) => {
    for (let i = 0; i < count; i += 1) {
      io.of(socket.nsp.name).to(socket.id).emit('NUMBER', socket.data.next || 0, socket.data.next % 2 ? Buffer.from([1, 2]) : null);
      socket.data.next = (socket.data.next || 0) + 1;
    }
  };
  socket.on('NUMBER_ME', number);
  socket.on('NUMBER_ME_WHEN_LOST', (count, answer) => {
    socket.once('disconnect', () => { number(count); console.log('"lost"'); });
    answer();
  });

  // Socket.IO 4
  socket.on('ASK_ME_IN_TIME', (milliseconds) => {
    socket.timeout(milliseconds).emit('ASK', 'in time?', (error, answer) => {
      socket.emit('TOLD', error ? error.message : null, answer);
    });
  });
  socket.on('ASK_ME_WITH_A_PROMISE', async () => {
    socket.emit('TOLD', await socket.emitWithAck('ASK', 'promise?'), await socket.timeout(60000).emitWithAck('ASK', 'again?'));
  });
}

io.on('connection', serve);
io.of('/open').on('connection', serve);
io.of('/chat').on('connection', serve);
io.of('/chat').use((socket, next) => {
  const { token } = generation >= '3' ? socket.handshake.auth : socket.handshake.query;
  if (token === 'good') {
    next();
  } else if (token === undefined) {
    next(new Error('no token'));
  } else {
    next(Object.assign(new Error('bad token'), { data: { tries: 2 } }));
  }
});

http.listen(0, '127.0.0.1', () => console.log(http.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit());
