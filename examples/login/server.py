"""The command that serves the API and its page on one port, with a demonstration user to log in as."""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from .channels import make_api
from .tokens import Tokens
from .users import Users

STATIC = Path(__file__).parent / "static"


def make_pages() -> Starlette:
    """Build the web application that the API is wrapped around: an ordinary one, here with nothing but a page."""
    return Starlette(routes=[Mount("/", StaticFiles(directory=STATIC, html=True))])


async def serve(host: str, port: int, users: Users, tokens: Tokens) -> None:
    """Serve until SIGINT or SIGTERM, and print the page's URL once there is something to be seen there."""
    api = make_api(make_pages(), users, tokens)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            bound = await tasks.start(partial(api.serve, host=host, port=port))
            print(f"The page is at {bound.url}/", flush=True)
            await anext(signals)
            tasks.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.login", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--backend", choices=["asyncio", "uvloop", "trio"], default="asyncio", help="default: asyncio")
    parser.add_argument("--database", type=Path, help="a file to keep users in (default: a temporary one)")
    parser.add_argument("--user", default="demo", help="the demonstration user's name (default: demo)")
    parser.add_argument("--password", help="the demonstration user's password (default: a new one)")
    parser.add_argument("--token-lifetime", type=int, default=900, metavar="SECONDS", help="default: 900")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

    status = 0
    try:
        run(options)
    except* KeyboardInterrupt:
        pass  # it came before there was a server to stop, or a second time: wrappers may pass one Ctrl-C on twice
    except* OSError as errors:
        print(f"Cannot serve on {options.host}:{options.port}: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
    return status


def run(options: argparse.Namespace) -> None:
    """Make the database and serve, on the event loop that was asked for."""
    password = options.password or secrets.token_urlsafe(9)
    with tempfile.TemporaryDirectory() as folder:
        users = Users(options.database or Path(folder, "users.db"))

        async def start() -> None:
            await users.put(options.user, password, "ADMIN")
            print(f"Log in as {options.user!r} with the password {password!r}. Ctrl-C stops the server.", flush=True)
            await serve(options.host, options.port, users, Tokens(options.token_lifetime))

        backend = "trio" if options.backend == "trio" else "asyncio"
        anyio.run(start, backend=backend, backend_options={"use_uvloop": True} if options.backend == "uvloop" else None)
