"""The login example: its users and tokens, its channels on every loop, its page, and its commands as processes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import itsdangerous
import pytest
from argon2 import PasswordHasher

from brightsocket_anyio import ChannelRefused, Client, ConnectionLost, open_client
from examples.login.channels import make_api
from examples.login.client import visit
from examples.login.server import make_pages
from examples.login.tokens import InvalidToken, Tokens
from examples.login.users import User, Users

ROOT = Path(__file__).parents[1]
PASSWORD = "correct horse battery staple"
ADA = User("Ada", "ADMIN")
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class CountingHasher(PasswordHasher):
    """Counts how often it compared a password with a hash, which is what takes the time."""

    verified = 0

    def verify(self, *arguments: Any) -> Any:
        self.verified += 1
        return super().verify(*arguments)


@pytest.fixture
async def users(tmp_path: Path) -> Users:
    users = Users(tmp_path / "users.db", QUICK)
    await users.put("Ada", PASSWORD, "ADMIN")
    await users.put("Bob", "another", "GUEST")
    return users


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(lifetime=60)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to let all tokens' time pass."""

    def pass_time() -> None:
        now = itsdangerous.TimestampSigner("key").get_timestamp()
        monkeypatch.setattr(itsdangerous.TimestampSigner, "get_timestamp", lambda self: now + 61)

    return pass_time


@pytest.fixture
async def url(users: Users, tokens: Tokens) -> AsyncIterator[str]:
    """The example, served by the embedded server."""
    api = make_api(make_pages(), users, tokens)
    async with anyio.create_task_group() as tasks:
        bound = await tasks.start(partial(api.serve, host="127.0.0.1", port=0))
        yield bound.url
        tasks.cancel_scope.cancel()


async def log_in(client: Client, name: str = "Ada", password: str = PASSWORD) -> str:
    guest = await client.connect("GUEST", {"username": name, "password": password})
    async with guest.receive("LOGGED_IN") as logins:
        login = await logins.receive()
    token = login["token"]
    assert isinstance(token, str)
    return token


async def test_users_are_known_by_their_passwords(users: Users, tmp_path: Path) -> None:
    assert await users.authenticate("Ada", PASSWORD) == ADA
    assert await users.authenticate("ADA", PASSWORD) == ADA
    assert await users.authenticate("Ada", "another") is None
    assert await users.authenticate("Eve", PASSWORD) is None
    assert await users.everyone() == [ADA, User("Bob", "GUEST")]
    assert PASSWORD.encode() not in await anyio.Path(tmp_path, "users.db").read_bytes()


async def test_an_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    hasher = CountingHasher(time_cost=1, memory_cost=8, parallelism=1)
    users = Users(tmp_path / "users.db", hasher)
    await users.put("Ada", PASSWORD, "ADMIN")
    assert await users.authenticate("Ada", "wrong") is None
    assert hasher.verified == 1
    assert await users.authenticate("Eve", "wrong") is None
    assert hasher.verified == 2


def test_a_token_is_good_for_its_time(tokens: Tokens, later: Any) -> None:
    token = tokens.make(ADA)
    assert tokens.check(token) == ADA
    later()
    with pytest.raises(InvalidToken, match="expired"):
        tokens.check(token)


OF_ANOTHER_KEY = pytest.param(Tokens(60).make(ADA), id="of another key")


@pytest.mark.parametrize("token", [None, "", 7, "made up", ["a"], OF_ANOTHER_KEY])
def test_a_token_of_others_is_not_good(tokens: Tokens, token: object) -> None:
    with pytest.raises(InvalidToken):
        tokens.check(token)


def test_a_revoked_token_is_not_good(tokens: Tokens) -> None:
    token, other = tokens.make(ADA), tokens.make(ADA)
    tokens.revoke(token)
    with pytest.raises(InvalidToken, match="logged out"):
        tokens.check(token)
    assert tokens.check(other) == ADA


async def test_the_whole_flow(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await visit(url, "Ada", PASSWORD, "hello")
    assert capsys.readouterr().out.splitlines() == [
        "GUEST: logged in, moving to ADMIN",
        "ADMIN: user Ada (ADMIN)",
        "ADMIN: user Bob (GUEST)",
        "ADMIN: Ada says 'hello'",
        "GUEST: logged out",
    ]


@pytest.mark.parametrize(
    "identity",
    [
        {"username": "Ada", "password": "wrong"},
        {"username": "Eve", "password": PASSWORD},
        {"username": "Ada"},
        {"username": ["Ada"], "password": PASSWORD},
        {"username": "Ada", "password": "x" * 501},
    ],
)
async def test_wrong_credentials_are_refused(url: str, identity: dict[str, Any]) -> None:
    async with open_client(url) as client:
        with pytest.raises(ChannelRefused) as refused:
            await client.connect("GUEST", identity)
        assert refused.value.reason == "Unknown user name or wrong password."


async def test_a_guest_can_try_again(url: str) -> None:
    async with open_client(url) as client:
        guest = await client.connect("GUEST")
        async with guest.receive("LOGIN_FAILED") as failures, guest.receive("LOGGED_IN") as logins:
            await guest.send("LOG_IN", {"username": "Ada", "password": "wrong"})
            assert await failures.receive() == {"reason": "Unknown user name or wrong password."}
            await guest.send("LOG_IN", {"username": "Ada", "password": PASSWORD})
            assert (await logins.receive())["userType"] == "ADMIN"


async def test_admin_is_for_administrators(url: str, later: Any) -> None:
    async with open_client(url) as client:
        token = await log_in(client, "Bob", "another")
        with pytest.raises(ChannelRefused, match="for administrators"):
            await client.connect("ADMIN", {"token": token})
        with pytest.raises(ChannelRefused, match="not valid"):
            await client.connect("ADMIN", {"token": "made up"})
        with pytest.raises(ChannelRefused, match="log in first"):
            await client.connect("ADMIN")
        token = await log_in(client)
        later()
        with pytest.raises(ChannelRefused, match="expired"):
            await client.connect("ADMIN", {"token": token})


async def test_an_action_after_the_token_expired_is_unauthorized_and_ends_the_connection(url: str, later: Any) -> None:
    async with open_client(url) as client, open_client(url) as onlooker:
        await client.connect("ADMIN", {"token": await log_in(client)})
        admin = await client.connect("ADMIN", {"token": await log_in(client)})
        other = await onlooker.connect("GUEST")
        async with other.receive("MESSAGE") as heard:
            async with admin.receive("UNAUTHORIZED") as refusals:
                await admin.send("MESSAGE", "while it is good")
                assert await heard.receive() == {"from": "Ada", "text": "while it is good"}
                later()
                await admin.send("MESSAGE", "too late")
                assert await refusals.receive() == {"reason": "Your login has expired. Log in again."}
                with pytest.raises(ConnectionLost, match="Your login has expired"):
                    await refusals.receive()
            await client.connect("GUEST")


async def test_a_log_out_ends_the_token(url: str) -> None:
    async with open_client(url) as client:
        token = await log_in(client)
        admin = await client.connect("ADMIN", {"token": token})
        await admin.call("LOG_OUT")
        with pytest.raises(ChannelRefused, match="logged out"):
            await client.connect("ADMIN", {"token": token})


async def test_a_message_reaches_everyone_and_only_as_text(url: str) -> None:
    async with open_client(url) as client, open_client(url) as onlooker:
        admin = await client.connect("ADMIN", {"token": await log_in(client)})
        guest = await onlooker.connect("GUEST")
        async with guest.receive("MESSAGE") as heard:
            for unusable in ("", "  ", 7, None, {"text": "x"}, "x" * 501):
                await admin.send("MESSAGE", unusable)
            await admin.send("MESSAGE", " at last ")
            assert await heard.receive() == {"from": "Ada", "text": "at last"}


async def test_the_page_is_served_beside_the_api(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        for path, kind, text in [
            ("/", "text/html", "<title>Log in"),
            ("/page.js", "javascript", "brightsocket("),
            ("/socket.io/brightsocket.js", "javascript", "export default"),
            ("/page.css", "text/css", "color-scheme"),
        ]:
            response = await http.get(path)
            assert response.status_code == 200
            assert kind in response.headers["content-type"]
            assert text in response.text
        assert (await http.get("/users.db")).status_code == 404


@pytest.mark.parametrize(
    ("loop", "number"), [("asyncio", signal.SIGINT), ("uvloop", signal.SIGTERM), ("trio", signal.SIGTERM)]
)
def test_the_commands(loop: str, number: signal.Signals) -> None:
    """The server prints a URL that works at once, the client does its round, and a signal is a good end."""
    module = [sys.executable, "-m", "examples.login"]
    command = [*module, "--port=0", f"--backend={loop}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            password = re.search(r"password '([^']+)'", server.stdout.readline())
            url = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert password
            assert url
            backend = "trio" if loop == "trio" else "asyncio"
            client = [sys.executable, "-m", "examples.login.client", f"--backend={backend}", url[0]]
            good = subprocess.run(client, cwd=ROOT, input=password[1], capture_output=True, text=True, timeout=30)
            assert (good.returncode, good.stderr) == (0, "")
            assert "GUEST: logged out" in good.stdout
            bad = subprocess.run(client, cwd=ROOT, input="wrong", capture_output=True, text=True, timeout=30)
            assert (bad.returncode, bad.stdout) == (1, "")
            assert "wrong password" in bad.stderr
            server.send_signal(number)
            assert server.wait(timeout=10) == 0
            assert server.stderr
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "examples.login", f"--port={port}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert re.fullmatch(rf"Cannot serve on 127\.0\.0\.1:{port}: .*in use.*\n", result.stderr)


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    command = [sys.executable, "-m", "examples.login.client", f"http://127.0.0.1:{port}"]
    result = subprocess.run(command, cwd=ROOT, input="password", capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert re.fullmatch(r"cannot connect to .*\n", result.stderr)
