'use strict';
const { io } = require('socket.io-client');

async function visit(url, word) {
  const socket = io(`${url}/chat`, { auth: { name: 'Ada', word } });
  const said = new Promise((resolve) => {
    socket.on('said', (name, text) => resolve(`${name} said: ${text}`));
  });
  try {
    await new Promise((resolve, reject) => {
      socket.on('connect', resolve);
      socket.on('connect_error', reject);
    });
    await socket.timeout(60000).emitWithAck('say', 'hello');
    console.log(await said);
    console.log(await socket.emitWithAck('who'));
  } catch (error) {
    console.log(`${error.message}, hint: ${error.data.hint}`);
  } finally {
    socket.disconnect();
  }
}

visit(process.argv[2], 'simsim').then(() => visit(process.argv[2], 'sesame'));
