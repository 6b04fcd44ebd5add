"""The API behind a server that sends it no lifespan, and in a host that does not run it: the answer says what to do."""

from __future__ import annotations

import httpx
import pytest

from .conftest import SERVERS
from .processes import Server, serving

UVICORN = Server("uvicorn chat:app", ("--lifespan", "off"))
GRANIAN = Server("granian --interface asgi chat:app", ("--interface", "asginl"))
NOT_RUN = "tests.interop.asgi.not_running:app"


@pytest.mark.parametrize(
    ("server", "app", "path", "advice"),
    [
        pytest.param(UVICORN, "examples.hosting.alone:api", "/socket.io/", "--lifespan on", id="uvicorn"),
        pytest.param(GRANIAN, "examples.hosting.alone:api", "/socket.io/", "no lifespan", id="granian"),
        pytest.param(SERVERS["hypercorn-asyncio"], NOT_RUN, "/live/socket.io/", "async with api.running()", id="host"),
    ],
)
def test_an_api_that_does_not_run_says_so(server: Server, app: str, path: str, advice: str) -> None:
    with serving(server, app, path) as served:
        response = httpx.get(f"{served.url}{path}?EIO=4&transport=polling")
    assert response.status_code == 500
    assert advice in response.json()["message"]
