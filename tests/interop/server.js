'use strict';
/**
 * The scenarios' server, on the original. Prints a JSON line with its port, then one for each thing that it sees; when its
 * standard input ends it waits until every client has left, and exits.
 */
require('./generation');
// each channel of the original listens to each connection
require('events').defaultMaxListeners = 100;
const http = require('http');
const brightsocket = require('brightsocket.io').default;

const server = http.createServer();
const api = brightsocket(server);
const see = (...what) => console.log(JSON.stringify(what));

api.connect('PLAIN', () => {});

api.connect('IDENTITY', (connection, identity) => connection.send('IDENTITY', identity));

api.connect('ECHO', (connection) => {
  connection.receive('MESSAGE', (payload) => connection.send('MESSAGE', payload));
});

api.connect('FILTERED', (connection) => {
  connection.addFilter((action, payload, next) => {
    see('filter', action, payload);
    if (payload.allowed) {
      next();
    } else {
      connection.send('BLOCKED', payload);
    }
  });
  connection.receive('MESSAGE', (payload) => connection.send('FORWARDED', payload));
});

api.connect('FILTERED_TWICE', (connection) => {
  connection.addFilter((action, payload, next) => {
    see('filter', action, payload);
    next();
  });
  connection.receive('MESSAGE', () => connection.send('FIRST'));
  connection.receive('MESSAGE', () => connection.send('SECOND'));
});

api.connect('BASE', (connection) => {
  connection.receive('MESSAGE', (payload) => connection.send('FROM_BASE', payload));
});

api.connect('EXTENDED', ['BASE'], (connection) => {
  connection.receive('MESSAGE', (payload) => connection.send('FROM_EXTENDED', payload));
});

api.connect('GUEST', (connection, identity) => {
  if (identity.username === 'ada' && identity.password === 'lovelace') {
    connection.send('LOGGED_IN', { userType: 'ADMIN', token: 'a token for ada' });
  } else {
    connection.send('UNAUTHORIZED');
  }
});

api.connect('ADMIN', (connection, identity) => {
  see('ADMIN', identity);
  connection.receive('WHO_AM_I', () => {
    connection.send('YOU_ARE', identity.token === 'a token for ada' ? 'ada' : 'nobody');
  });
});

api.connect('USER1', (connection) => {
  see('USER1');
  connection.send('NEEDS_REIDENTIFY', 'USER2');
  connection.receive('MESSAGE', () => see('USER1 MESSAGE'));
});

api.connect('USER2', (connection) => {
  see('USER2');
  connection.receive('MESSAGE', () => {
    see('USER2 MESSAGE');
    connection.send('REIDENTIFIED');
  });
});

api.connect('LEAVING', (connection) => {
  connection.socket.on('disconnect', () => see('LEAVING left'));
});

server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));

process.stdin.resume();
process.stdin.on('end', () => {
  const engine = api.pool.pool.engine;
  setInterval(() => engine.clientsCount === 0 && process.exit(0), 5);
});
