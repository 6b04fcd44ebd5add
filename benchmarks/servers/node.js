// socket.io, as its documentation has it.
"use strict";
const http = require("http");
const {Server} = require("socket.io-4");

const server = http.createServer();
const io = new Server(server);

io.on("connection", (socket) => {
  let expected = 0;
  socket.on("ECHO", (text) => socket.emit("ECHO", text));
  socket.on("SHOUT", (text) => io.emit("NEWS", text));
  socket.on("EXPECT", (amount) => {
    expected = amount;
  });
  socket.on("FLOOD", async () => {
    await new Promise((resolve) => setTimeout(resolve, 1));
    if (--expected === 0) socket.emit("DONE");
  });
});

server.listen(0, "127.0.0.1", 1024, () => console.log(server.address().port));
