"""An application that has mounted the API and forgotten to run it."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Mount

from brightsocket_anyio import Brightsocket

app = Starlette(routes=[Mount("/live", Brightsocket())])
