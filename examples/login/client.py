"""The page's flow as a Python program: log in as GUEST, be moved to ADMIN, use it, log out.

    python -m examples.login.client http://127.0.0.1:8000 demo

asks for the password (or reads it from a pipe), and prints what happens.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence

import anyio

from brightsocket_anyio import BrightsocketError, open_client


async def visit(url: str, username: str, password: str, text: str = "Hello from a Python program") -> None:
    """Log in, list the users, say something to everyone, and log out.

    :raises brightsocket_anyio.ChannelRefused: the name or the password is wrong.
    """
    async with open_client(url) as client:
        guest = await client.connect("GUEST", {"username": username, "password": password})
        async with guest.receive("LOGGED_IN") as logins:
            login = await logins.receive()
        print(f"GUEST: logged in, moving to {login['userType']}")

        admin = await client.connect(login["userType"], {"token": login["token"]})  # GUEST is over by now
        for user in await admin.call("LIST_USERS"):
            print(f"ADMIN: user {user['name']} ({user['user_type']})")

        async with admin.receive("MESSAGE") as messages:
            await admin.send("MESSAGE", text)
            async for message in messages:
                print(f"ADMIN: {message['from']} says {message['text']!r}")
                if message == {"from": username, "text": text}:
                    break

        await admin.call("LOG_OUT")
        await client.connect("GUEST")
        print("GUEST: logged out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.login.client", description="Log in, as the page does.")
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("username", nargs="?", default="demo")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio", help="default: asyncio")
    options = parser.parse_args(arguments)
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    try:
        anyio.run(visit, options.url, options.username, password, backend=options.backend)
    except BrightsocketError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
