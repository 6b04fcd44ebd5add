"""The API is the whole application."""

from __future__ import annotations

from brightsocket_anyio import Brightsocket

from .channels import add_channels

api = Brightsocket()
add_channels(api)
