"""One small chat three times: on socket.io, on python-socketio, and here; each client goes to each server."""
