"""What the JavaScript peers need: Node, and the packages of package-lock.json."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def node() -> None:
    """Node and the packages are there; where CI is set, a missing one is an error, elsewhere a skip."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        message = f"{' and '.join(missing)} not found: the JavaScript peers need Node 20 or newer with npm"
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(message)
        pytest.skip(message)
    wanted, installed = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes, the first installs
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            subprocess.run(["npm", "ci"], cwd=HERE, check=True)
