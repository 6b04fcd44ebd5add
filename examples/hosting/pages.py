"""What a web application has of its own, here in Starlette's words: a page, and a WebSocket."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


async def hello(request: Request) -> JSONResponse:
    client = request.client.host if request.client else None
    return JSONResponse({"greeting": request.app.state.greeting, "scheme": request.url.scheme, "client": client})


async def shout(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text((await websocket.receive_text()).upper())
    await websocket.close()


routes = [Route("/", hello), WebSocketRoute("/shout", shout)]
