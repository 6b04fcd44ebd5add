'use strict';
/**
 * A stock client that comes back: `node recovery.js URL`. Prints a JSON line for each thing that it sees, until it is
 * told to END.
 */
const io = require('socket.io-client-4');

const see = (...what) => console.log(JSON.stringify(what));

const socket = io(process.argv[2], {
  transports: process.env.TRANSPORTS.split(','),
  reconnectionDelay: 20,
  reconnectionDelayMax: 100,
});
socket.on('connect', () => see('connected', socket.id, socket.recovered));
socket.on('disconnect', () => see('lost'));
socket.on('NUMBER', (number, bytes) => see('number', number, bytes === null ? null : Buffer.from(bytes).toString('hex')));
socket.on('END', () => socket.disconnect());
