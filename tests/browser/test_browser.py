"""The browser module and the login example's page in a real Chromium, driven by Playwright from Node."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PASSWORD = "correct horse battery staple"


def needed(name: str, *commands: str) -> str:
    """Return the path of a program that these tests cannot do without: an error in CI, a skip elsewhere."""
    for command in commands:
        if path := shutil.which(command):
            return path
    reason = f"{name} is not installed: none of {', '.join(commands)} is on the PATH"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with the packages of this folder's lock file installed."""
    node, npm = needed("Node", "node"), needed("npm", "npm")
    wanted, installed = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=HERE, check=True, timeout=100)
    return node


@pytest.fixture(scope="module")
def chromium() -> str:
    return needed("Chromium", "chromium", "chromium-browser", "google-chrome")


def run_node(node: str, chromium: str, test: str, **environment: str) -> None:
    """Run one file of node's test runner, and fail with what it printed."""
    result = subprocess.run(
        [node, "--test", "--test-reporter=spec", "--test-timeout=60000", test],
        cwd=HERE,
        env={**os.environ, "CHROMIUM": chromium, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"^ℹ fail 0$", result.stdout, re.MULTILINE), result.stdout


def test_the_types_of_the_module(node: str) -> None:
    tsc = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    result = subprocess.run([node, tsc, "--project", HERE], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout


def test_the_module_and_a_stock_server(node: str, chromium: str) -> None:
    run_node(node, chromium, "module.test.mjs")


@contextmanager
def started(*arguments: str, expect: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process, and what it printed first that matches."""
    with subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            output = ""
            while not (match := re.search(expect, output)):
                line = process.stdout.readline()
                assert line, f"the server ended before it was ready: {output!r}"
                output += line
            yield process, match[0]
        finally:
            process.kill()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_pages_and_our_server(node: str, chromium: str, loop: str) -> None:
    with started("tests.browser.server", loop, expect=r"\{.*\}") as (process, origins):
        run_node(node, chromium, "api.test.mjs", ORIGINS=origins, SERVER_PID=str(process.pid))
        assert process.wait(timeout=10) == 0  # the test ends with a SIGINT for it


@pytest.mark.parametrize(
    ("client", "loop"),
    [
        ("brightsocket.js", "asyncio"),
        ("brightsocket.js", "trio"),
        # the stock client, by these transports
        ("polling,websocket", "trio"),
        ("polling", "asyncio"),
    ],
)
def test_a_person_logs_in(node: str, chromium: str, loop: str, client: str) -> None:
    arguments = ["--port=0", f"--backend={loop}", f"--password={PASSWORD}"]
    with started("examples.login", *arguments, expect=r"http://\S+") as (process, url):
        run_node(
            node,
            chromium,
            "login.test.mjs",
            CLIENT=client,
            URL=url,
            USERNAME="demo",
            PASSWORD=PASSWORD,
            SERVER_PID=str(process.pid),
        )
        assert process.wait(timeout=10) == 0  # the test ends with a SIGINT for it
