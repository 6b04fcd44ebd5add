"""The embedded server as the page on deploying starts it, by TLS; a SIGTERM ends it."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import anyio
import pytest
import trustme

from brightsocket_anyio import ConnectionLost, open_client
from tests.support import PATIENCE

from .processes import Server, reserved_port, running

COMMAND = Server("python -m chat.embedded")


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def test_the_embedded_server(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with reserved_port() as port:
        *command, cert, key = COMMAND.line("examples.hosting.embedded:api", port)
        with running([*command, str(tmp_path / cert), str(tmp_path / key)], re.compile("Serving at")) as process:
            with anyio.fail_after(PATIENCE):
                async with open_client(f"https://127.0.0.1:{port}", ssl_context=context, reconnection=False) as client:
                    member = await client.connect("MEMBER", {"name": "ada"})
                    async with member.receive("JOINED") as joined:
                        assert await joined.receive() == "ada"
                        process.terminate()
                        with pytest.raises(ConnectionLost, match="shutting down"):
                            await joined.receive()
            assert process.wait() == 0
            assert not process.trouble
