"""The wire without I/O: text, bytes and the time go in; packets, events and the next deadline come out."""
