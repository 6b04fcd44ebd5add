"""``python -m examples.login`` starts the server."""

from __future__ import annotations

import sys

from .server import main

sys.exit(main())
