'use strict';
/**
 * Makes the original's packages use the Socket.IO generation that the environment variable SOCKETIO names: they say
 * `require('socket.io')`, and this folder has several of them. TRANSPORTS, a comma-separated list, limits the client's
 * transports, for which the original has no option.
 */
const Module = require('module');

const generation = process.env.SOCKETIO;
const transports = process.env.TRANSPORTS;
const load = Module._load;

Module._load = function (request, parent, ...rest) {
  const ours = parent && /[\\/]node_modules[\\/]brightsocket\.io/.test(parent.filename);
  if (!ours || !['socket.io', 'socket.io-client'].includes(request)) {
    return load.call(this, request, parent, ...rest);
  }
  const chosen = load.call(this, `${request}-${generation}`, module, ...rest);
  if (request === 'socket.io' || !transports) {
    return chosen;
  }
  return (location) => chosen(location, { transports: transports.split(',') });
};
