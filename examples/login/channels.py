"""The API: what a GUEST can do (log in), and what an ADMIN can do (see the users, speak to everyone, log out)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from brightsocket_anyio import Brightsocket, Connection, Refused

from .tokens import InvalidToken, Tokens
from .users import Users

MAX_TEXT = 500
WRONG = "Unknown user name or wrong password."


def make_api(app: Any, users: Users, tokens: Tokens) -> Brightsocket:
    """Build the API around a web application, which gets every request that is not ours.

    :param app: an ASGI application.
    :param users: who may log in.
    :param tokens: makes a token at the login and checks it afterwards.
    """
    api = Brightsocket(app)

    async def log_in(credentials: Any) -> dict[str, str]:
        match credentials:
            case {"username": str(name), "password": str(password)} if max(len(name), len(password)) <= MAX_TEXT:
                user = await users.authenticate(name, password)
            case _:
                user = None
        if user is None:
            raise Refused(WRONG)
        return {"userType": user.user_type, "token": tokens.make(user)}

    @api.connect("GUEST")
    async def guest(connection: Connection, identity: dict[str, Any]) -> None:
        """Anyone. Credentials come with the identity (a program's way), or later in LOG_IN (a page's way)."""
        if identity:
            await connection.send("LOGGED_IN", await log_in(identity))

        @connection.on("LOG_IN")
        async def log_in_later(credentials: Any) -> None:
            try:
                await connection.send("LOGGED_IN", await log_in(credentials))
            except Refused as refused:
                await connection.send("LOGIN_FAILED", {"reason": refused.reason})

    @api.connect("ADMIN")
    async def admin(connection: Connection, identity: dict[str, Any]) -> None:
        """Those who come with a good token, for as long as it is good."""
        token = identity.get("token")
        try:
            user = tokens.check(token)
        except InvalidToken as error:
            raise Refused(str(error)) from None
        if user.user_type != "ADMIN":
            raise Refused("This channel is for administrators.")

        @connection.add_filter
        async def authenticated(action: str, payload: Any, forward: Callable[..., Awaitable[None]]) -> None:
            try:
                tokens.check(token)
            except InvalidToken as error:
                await connection.send("UNAUTHORIZED", {"reason": str(error)})
                raise Refused(str(error)) from None  # ends the connection, and says why
            await forward()

        @connection.on("LIST_USERS")
        async def list_users() -> list[dict[str, str]]:
            return [asdict(one) for one in await users.everyone()]

        @connection.on("LOG_OUT")
        async def log_out() -> None:
            tokens.revoke(token)

        async with connection.receive("MESSAGE") as messages:
            async for text in messages:
                if isinstance(text, str) and 0 < len(text.strip()) <= MAX_TEXT:
                    await api.pool.emit("MESSAGE", {"from": user.name, "text": text.strip()})

    return api
