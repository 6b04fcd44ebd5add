"""The browser module and the login example's page in a real Chromium, driven by Playwright from Node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
    if not (HERE / "node_modules" / ".package-lock.json").exists():
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=HERE, check=True, timeout=100)
    return node


@pytest.fixture(scope="module")
def chromium() -> str:
    return needed("Chromium", "chromium", "chromium-browser", "google-chrome")


def run_node(node: str, chromium: str, test: str, **environment: str) -> None:
    """Run one file of node's test runner, and fail with what it printed."""
    result = subprocess.run(
        [node, "--test", "--test-reporter=spec", test],
        cwd=HERE,
        env={**os.environ, "CHROMIUM": chromium, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"^ℹ fail 0$", result.stdout, re.MULTILINE), result.stdout


def test_the_module_and_a_stock_server(node: str, chromium: str) -> None:
    run_node(node, chromium, "module.test.mjs")


@pytest.fixture(params=["asyncio", "trio"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The example's server as a process, and its URL."""
    arguments = ["--port=0", f"--backend={request.param}", f"--password={PASSWORD}"]
    command = [sys.executable, "-m", "examples.login", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            output = ""
            while not (match := re.search(r"http://\S+", output)):
                line = process.stdout.readline()
                assert line, f"the server ended before it printed its URL: {output!r}"
                output += line
            yield process, match[0]
        finally:
            process.kill()


def test_a_person_logs_in(node: str, chromium: str, server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    run_node(
        node,
        chromium,
        "login.test.mjs",
        URL=url,
        USERNAME="demo",
        PASSWORD=PASSWORD,
        SERVER_PID=str(process.pid),
    )
    assert process.wait(timeout=10) == 0  # the test ends with a SIGINT for it
