'use strict';
const { Server } = require('socket.io');

const io = new Server(Number(process.argv[2]));
const history = [];
const present = new Set();
const chat = io.of('/chat');

chat.use((socket, next) => {
  if (socket.handshake.auth.word === 'sesame') {
    return next();
  }
  const error = new Error('wrong word');
  error.data = { hint: 'a seed' };
  return next(error);
});

chat.on('connection', (socket) => {
  const { name } = socket.handshake.auth;
  present.add(name);

  socket.on('say', (text, answer) => {
    history.push(text);
    chat.emit('said', name, text);
    answer(history.length);
  });

  socket.on('who', (answer) => answer([...present]));

  socket.on('disconnect', (reason) => {
    present.delete(name);
  });
});

io.httpServer.on('listening', () => console.log(io.httpServer.address().port));
