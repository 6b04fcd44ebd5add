"""An API whose door is guarded, and whose channel tells what it has seen of the handshake."""

from __future__ import annotations

import anyio

from brightsocket_anyio import Brightsocket, Connection, Refused, Request


async def authorize(request: Request) -> None:
    # long enough for the watch over the peer to be waiting
    await anyio.sleep(0.01)
    if request.cookies.get("ticket") != "t-1":
        raise Refused("no such ticket")
    request.state["name"] = "Ada"
    request.add_header("X-Room", "7")
    request.set_cookie("seen", "yes")


api = Brightsocket(authorize=authorize, subprotocols=["v1"], cookie="sticky", allowed_origins=["https://page.example"])


@api.connect("MIRROR")
async def mirror(connection: Connection) -> None:
    request = connection.request
    assert request is not None
    client = request.client[0] if request.client else None
    await connection.send(
        "SEEN",
        {
            "name": request.state["name"],
            "mine": request.headers["x-mine"],
            "room": request.query["room"],
            "path": request.path,
            "client": client,
            "subprotocol": request.subprotocol,
        },
    )
