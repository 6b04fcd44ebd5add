"""The embedded server, by TLS, until it is told to stop."""

from __future__ import annotations

import signal
import ssl
import sys
from functools import partial

import anyio

from .alone import api


async def main(port: int, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            bound = await tasks.start(partial(api.serve, port=port, ssl_context=context))
            print(f"Serving at {bound.url}", flush=True)
            await anext(signals)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    port, certificate, key = sys.argv[1:]
    anyio.run(main, int(port), certificate, key, backend="trio")
