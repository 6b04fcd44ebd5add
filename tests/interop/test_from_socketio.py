"""The programs of docs/coming-from-socketio.md: each client goes to each server, and sees the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.interop.peers import HERE
from tests.support import PATIENCE

ROOT = HERE.parents[1]
NODE = ["node", "-r", str(HERE / "alias.js")]
PROGRAMS = ROOT / "examples" / "from_socketio"
PACKAGE = [sys.executable, "-m"]
SERVERS = {
    "socket.io": [*NODE, str(PROGRAMS / "server.js")],
    "python-socketio": [*PACKAGE, "examples.from_socketio.python_socketio_server"],
    "ours": [*PACKAGE, "examples.from_socketio.server"],
}
CLIENTS = {
    "socket.io": [*NODE, str(PROGRAMS / "client.js")],
    "python-socketio": [*PACKAGE, "examples.from_socketio.python_socketio_client"],
    "ours": [*PACKAGE, "examples.from_socketio.client"],
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(f"chat on {name}")) for name in SERVERS]
)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with subprocess.Popen([*SERVERS[request.param], "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_sees_the_same_of_each_server(client: str, url: str) -> None:
    command = [*CLIENTS[client], url]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
    refusal, said, who = result.stdout.splitlines()
    assert refusal == "wrong word, hint: a seed"
    assert said == "Ada said: hello"
    # who left a moment ago may be there yet
    assert who.replace(" ", "") in ("['Ada']", "['Ada','Ada']")
