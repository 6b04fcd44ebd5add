"""The matrix: which applications stand behind which servers, and which loop their clients run on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from .processes import Served, Server, serving

UVICORN = "uvicorn chat:app"
SERVERS = {
    "uvicorn-websockets": Server(UVICORN, ("--ws", "websockets")),
    "uvicorn-websockets-sansio": Server(UVICORN, ("--ws", "websockets-sansio")),
    "uvicorn-wsproto": Server(UVICORN, ("--ws", "wsproto")),
    "hypercorn-asyncio": Server("hypercorn chat:app"),
    "hypercorn-uvloop": Server("hypercorn chat:app", ("--worker-class", "uvloop")),
    "hypercorn-trio": Server("hypercorn --worker-class trio chat:app"),
    "granian": Server("granian --interface asgi chat:app"),
}
#: each application, and where the API is in it
APPS = {
    "alone:api": "/socket.io/",
    "around:api": "/socket.io/",
    "in_starlette:app": "/live/socket.io/",
    "in_fastapi:app": "/live/",
    "in_quart:app": "/socket.io/",
    "in_quart_trio:app": "/socket.io/",
}
#: one of each kind: what lies between server and application is the same in the others
REPRESENTATIVES = ("uvicorn-websockets-sansio", "hypercorn-asyncio", "hypercorn-trio", "granian")


@dataclass(frozen=True)
class Case:
    """An application behind a server, and the loop of those who come to it."""

    server: str
    app: str
    loop: str

    def __str__(self) -> str:
        return f"{self.server}-{self.app.partition(':')[0]}"


def cases() -> Iterator[Case]:
    for server in SERVERS:
        yield Case(server, "around:api", "trio")
        yield Case(server, "in_starlette:app", "asyncio")
    for server in REPRESENTATIVES:
        quart = "in_quart_trio:app" if server == "hypercorn-trio" else "in_quart:app"
        yield Case(server, "alone:api", "asyncio")
        yield Case(server, "in_fastapi:app", "trio")
        yield Case(server, quart, "asyncio")


# A process is started once for all the tests of a case: under xdist they go to the same worker.
CASES = [pytest.param(case, id=str(case), marks=pytest.mark.xdist_group(str(case))) for case in cases()]


@pytest.fixture(scope="session", autouse=True)
def node() -> None:
    """No peer here runs on Node."""


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    case: Case = request.param
    return case


@pytest.fixture(scope="session")
def anyio_backend(case: Case) -> tuple[str, dict[str, Any]]:
    return case.loop, {}


@pytest.fixture(scope="session")
def served(case: Case) -> Iterator[Served]:
    """A server whose end is a test as well: it stops when it is told to, and has had nothing to complain of."""
    with serving(SERVERS[case.server], f"examples.hosting.{case.app}", APPS[case.app]) as served:
        yield served
        served.process.terminate()
        status = served.process.wait()
    # pytest has the test that comes next answer for it
    assert status == exit_status(case.server), f"{case} ended so"
    assert not served.process.trouble, f"{case} complained"


def exit_status(server: str) -> int:
    """How a server ends on SIGTERM: uvicorn gives itself the signal again once it has shut down."""
    return -signal.SIGTERM if server.startswith("uvicorn") else 0
