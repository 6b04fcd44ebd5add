"""Fuzzing: what a peer may send, whatever it is, is taken or is the documented error."""
