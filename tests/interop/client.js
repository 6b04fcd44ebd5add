'use strict';
/**
 * The scenarios' client, on the original: `node client.js URL SCENARIO`. Prints a JSON line for each thing that it sees;
 * once it has disconnected at the scenario's end nothing is left to do, so Node exits.
 */
require('./generation');
const brightsocket = require('brightsocket.io-client').default;

const [url, scenario] = process.argv.slice(2);
const socket = brightsocket(url);
const see = (...what) => console.log(JSON.stringify(what));

const finish = () => socket.disconnect();

const scenarios = {
  identify() {
    socket.connect('PLAIN', () => {
      see('identified');
      finish();
    });
  },

  identity() {
    socket.receive('IDENTITY', (identity) => {
      see('IDENTITY', identity);
      finish();
    });
    socket.connect('IDENTITY', { name: 'Ada', 'BRIGHTSOCKET:SECRET': 1, nested: { list: [1, 'zwei', null, 'Zürich 🚀'] } });
  },

  send_and_receive() {
    const payloads = [{ a: 1 }, 'text', [1, [2]], 5, true, 'Grüße 🚀', null, 0, ''];
    let count = 0;
    socket.receive('MESSAGE', (payload) => {
      see('MESSAGE', payload);
      count += 1;
      if (count === payloads.length) {
        finish();
      }
    });
    socket.connect('ECHO', () => payloads.forEach((payload) => socket.send('MESSAGE', payload)));
  },

  filter() {
    socket.receive('BLOCKED', (payload) => see('BLOCKED', payload));
    socket.receive('FORWARDED', (payload) => {
      see('FORWARDED', payload);
      finish();
    });
    socket.connect('FILTERED', () => {
      socket.send('MESSAGE', { allowed: false });
      socket.send('MESSAGE', { allowed: true });
    });
  },

  filter_of_two_receivers() {
    socket.receive('FIRST', () => see('FIRST'));
    socket.receive('SECOND', () => {
      see('SECOND');
      finish();
    });
    socket.connect('FILTERED_TWICE', () => socket.send('MESSAGE', { number: 1 }));
  },

  extends() {
    socket.receive('FROM_BASE', (payload) => see('FROM_BASE', payload));
    socket.receive('FROM_EXTENDED', (payload) => {
      see('FROM_EXTENDED', payload);
      finish();
    });
    socket.connect('EXTENDED', () => socket.send('MESSAGE', 'hello'));
  },

  login() {
    socket.receive('LOGGED_IN', (login) => {
      see('LOGGED_IN', login);
      socket.connect(login.userType, { token: login.token }, () => {
        see('identified', login.userType);
        socket.send('WHO_AM_I');
      });
    });
    socket.receive('YOU_ARE', (name) => {
      see('YOU_ARE', name);
      finish();
    });
    socket.connect('GUEST', { username: 'ada', password: 'lovelace' }, () => see('identified', 'GUEST'));
  },

  reidentify() {
    socket.connect('USER1', () => {
      see('identified', 'USER1');
      socket.receive('REIDENTIFIED', () => {
        see('REIDENTIFIED');
        finish();
      });
      socket.receive('NEEDS_REIDENTIFY', (channel) => {
        see('NEEDS_REIDENTIFY', channel);
        socket.connect(channel);
        socket.send('MESSAGE');
      });
    });
  },

  upgrade() {
    // echoes go back and forth while the transport changes; none may be lost, doubled or out of order
    const transport = socket.socket.io.engine;
    const numbers = [];
    let upgraded = false;
    let last;
    transport.once('upgrade', () => { upgraded = true; });
    socket.receive('MESSAGE', ({ number }) => {
      numbers.push(number);
      if (number === last) {
        see('in order', numbers.every((each, index) => each === index));
        see('transport', transport.transport.name);
        finish();
        return;
      }
      if (upgraded && last === undefined) {
        last = number + 10;
      }
      socket.send('MESSAGE', { number: number + 1 });
    });
    socket.connect('ECHO', () => socket.send('MESSAGE', { number: 0 }));
  },

  disconnect() {
    socket.connect('LEAVING', () => {
      see('identified');
      finish();
    });
  },
};

scenarios[scenario]();
