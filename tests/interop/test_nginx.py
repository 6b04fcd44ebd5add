"""nginx in front of two processes, with the configuration and the systemd unit that docs/deploying.md shows."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import ssl
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

from brightsocket_anyio import Connection, open_client

from .asgi.processes import ROOT, reserved_port, running, wait_for_port

FILES = ROOT / "docs" / "deploying"
APP = "examples.hosting.in_starlette:app"
API = "/live/socket.io/"
CLOSE, PONG = "1", "3"

# a process is started once for all of them: under xdist they go to the same worker
pytestmark = pytest.mark.xdist_group("nginx")


def find_nginx() -> str:
    """Where nginx is; where CI is set, it must be there."""
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if path is None:
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail("nginx is not installed")
        pytest.skip("nginx is not installed")
    return path


def unit_command(port: int) -> list[str]:
    """What the systemd unit starts, for an instance."""
    [command] = re.findall(r"^ExecStart=/srv/chat/venv/bin/(.*)$", (FILES / "chat@.service").read_text(), re.MULTILINE)
    words = [APP if word == "chat:app" else word.replace("%i", str(port)) for word in shlex.split(command)]
    return [sys.executable, "-m", *words]


def write_configuration(folder: Path, port: int, backends: list[int], cert: Path, key: Path) -> Path:
    """The page's configuration with other ports and files, in one that lets nginx run for any user."""
    site = (FILES / "chat.conf").read_text()
    for there, here in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "127.0.0.1:8001": f"127.0.0.1:{backends[0]}",
        "127.0.0.1:8002": f"127.0.0.1:{backends[1]}",
        "/etc/ssl/chat.pem": str(cert),
        "/etc/ssl/chat.key": str(key),
    }.items():
        assert site.count(there) == 1, there
        site = site.replace(there, here)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr notice;\n{'user root;' if os.geteuid() == 0 else ''}\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{site}}}\n"
    )
    return path


@dataclass(frozen=True)
class Balanced:
    """The address of nginx.

    :ivar context: trusts its certificate.
    """

    url: str
    context: ssl.SSLContext

    def http(self, *addresses: str) -> httpx.AsyncClient:
        """A client that comes from each of some addresses in turn."""
        return httpx.AsyncClient(base_url=self.url, transport=Roaming(self.context, *addresses), timeout=60)


class Roaming(httpx.AsyncBaseTransport):
    def __init__(self, context: ssl.SSLContext, *addresses: str) -> None:
        self._all = [httpx.AsyncHTTPTransport(verify=context, local_address=address) for address in addresses]
        self._turns = itertools.cycle(self._all)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await next(self._turns).handle_async_request(request)

    async def aclose(self) -> None:
        for each in self._all:
            await each.aclose()


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    nginx = find_nginx()
    folder = tmp_path_factory.mktemp("nginx")
    authority = trustme.CA()
    cert, key = folder / "chat.pem", folder / "chat.key"
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with ExitStack() as stack:
        port, *backends = [stack.enter_context(reserved_port()) for _ in range(3)]
        processes = [stack.enter_context(running(unit_command(backend))) for backend in backends]
        configuration = write_configuration(folder, port, backends, cert, key)
        command = [nginx, "-p", str(folder), "-e", "stderr", "-c", str(configuration)]
        front = stack.enter_context(running(command, re.compile("start worker process ")))
        wait_for_port(port)
        yield Balanced(f"https://127.0.0.1:{port}", context)
        for process in (front, *processes):
            process.terminate()
        for process in (front, *processes):
            process.wait()
            assert not process.trouble


async def post(http: httpx.AsyncClient, sid: str, packet: str) -> httpx.Response:
    return await http.post(f"{API}?EIO=4&transport=polling&sid={sid}", content=packet)


@asynccontextmanager
async def session(http: httpx.AsyncClient) -> AsyncGenerator[str]:
    """A session that polls, by its id."""
    response = await http.get(f"{API}?EIO=4&transport=polling")
    assert response.status_code == 200
    sid: str = json.loads(response.text[1:])["sid"]
    yield sid
    assert (await post(http, sid, CLOSE)).status_code == 200


@pytest.fixture
async def two_addresses(balanced: Balanced) -> tuple[str, str]:
    """Two addresses of clients that lead to different processes: a session from one is not known at the other."""
    async with balanced.http("127.0.0.2") as http, session(http) as sid:
        for last in range(3, 63):
            async with balanced.http(f"127.0.0.{last}") as elsewhere:
                response = await post(elsewhere, sid, PONG)
            if response.status_code == 400:
                assert response.json() == {"code": 1, "message": "Session ID unknown"}
                return "127.0.0.2", f"127.0.0.{last}"
    pytest.fail("one process gets everything")


async def converse(member: Connection) -> None:
    for payload in ("Grüße 🚀", b"\x00" * 100_000, "x" * 500_000):
        assert await member.call("ECHO", payload) == payload


async def test_a_page_hears_who_comes_and_how(balanced: Balanced) -> None:
    async with balanced.http("127.0.0.9") as http:
        page = (await http.get("/", headers={"x-forwarded-for": "192.0.2.1"})).json()
    assert page == {"greeting": "hello", "scheme": "https", "client": "127.0.0.9"}


async def test_a_cookie_keeps_a_poller_with_its_process(balanced: Balanced, two_addresses: tuple[str, str]) -> None:
    async with balanced.http(*two_addresses) as http, session(http) as sid:
        assert http.cookies["backend"] == two_addresses[0]
        for _ in two_addresses:
            response = await post(http, sid, PONG)
            assert response.status_code == 200
            assert "set-cookie" not in response.headers


async def test_its_address_keeps_a_poller_without_cookies_with_its_process(
    balanced: Balanced, two_addresses: tuple[str, str]
) -> None:
    for address in two_addresses:
        async with balanced.http(address) as http, session(http) as sid:
            http.cookies.clear()
            assert (await post(http, sid, PONG)).status_code == 200
            http.cookies.clear()


@pytest.mark.parametrize("transport", ["polling", "websocket", ("polling", "websocket")], ids=str)
async def test_our_client_from_changing_addresses(
    balanced: Balanced, two_addresses: tuple[str, str], transport: Any
) -> None:
    async with (
        balanced.http(*two_addresses) as http,
        open_client(balanced.url, path=API, http=http, transport=transport) as client,
    ):
        member = await client.connect("MEMBER", {"name": "ada"})
        await converse(member)
        if not isinstance(transport, str):
            with anyio.fail_after(60):
                while member.transport == "polling":
                    await converse(member)
        await converse(member)


async def test_a_page_s_origin_is_compared_with_the_host_that_it_asked(balanced: Balanced) -> None:
    async with balanced.http("127.0.0.1") as http:
        http.headers["origin"] = balanced.url
        async with session(http):
            pass
        http.headers["origin"] = "https://127.0.0.1"
        refused = await http.get(f"{API}?EIO=4&transport=polling")
    assert (refused.status_code, refused.json()) == (403, {"code": 4, "message": "Forbidden"})
