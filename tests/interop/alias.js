'use strict';
/** `node -r alias.js program.js`: the program's `socket.io` and `socket.io-client` are this folder's, of the newest generation. */
const Module = require('module');

const resolve = Module._resolveFilename;

Module._resolveFilename = (request, ...rest) => (
  ['socket.io', 'socket.io-client'].includes(request) ? require.resolve(`${request}-4`) : resolve(request, ...rest)
);
