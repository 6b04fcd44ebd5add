"""The check that ends every test finds what a test leaves behind, says what it is, and blames no other test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

_ROOT = Path(__file__).parents[1]

_LEAKING = '''
"""Tests that leave something behind, each followed by one that does not."""

import asyncio
import os
import subprocess
import sys
import threading

import anyio
import pytest

from brightsocket_anyio.protocol.state import Automaton, Side
from brightsocket_anyio.session import Session
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.timer import Timer
from brightsocket_anyio.transports.polling import PollingTransport

kept = []


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def for_all_tests():
    """What lives as long as the module is nobody's leak, and it keeps the loop, with whatever is left on it."""
    task = asyncio.create_task(anyio.sleep_forever(), name="of the module")
    with open("/dev/null"):
        yield
    task.cancel()


def session():
    settings = Settings()
    automaton = Automaton(Side.SERVER, 4, settings, now=0)
    return Session(automaton, PollingTransport(4, settings), settings, Timer())


async def test_task():
    kept.append(asyncio.create_task(anyio.sleep_forever(), name="a forgotten one"))


async def test_no_task():
    await asyncio.create_task(anyio.sleep(0))


async def test_session():
    kept.append(session())


async def test_no_session():
    left = session()
    left._pushed_back.append(left)  # a cycle is no leak


def test_descriptor():
    kept.append(os.open("/dev/zero", os.O_RDONLY))


def test_no_descriptor():
    os.close(os.open("/dev/zero", os.O_RDONLY))


def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()


def test_no_thread():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def test_child():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))


def test_no_child():
    subprocess.run([sys.executable, "-c", ""])


@pytest.fixture
async def forgetful():
    yield
    kept.append(session())


async def test_fixture(forgetful):
    pass


@pytest.fixture
async def orderly():
    kept.append(session())
    yield
    kept.pop()


async def test_no_fixture(orderly):
    pass


async def test_that_fails():
    kept.append(session())
    raise LookupError("on purpose")


def test_that_fails_no_more():
    pass


def teardown_module():
    child = next(each for each in kept if isinstance(each, subprocess.Popen))
    child.communicate()
'''


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each test that is at fault."""
    folder = tmp_path_factory.mktemp("leaking")
    (folder / "test_leaking.py").write_text(_LEAKING)
    options = ["-p", "tests.leaks", "-p", "no:randomly", "-p", "no:cacheprovider", "-o", "anyio_mode=auto"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--rootdir",
        str(folder),
        f"--junit-xml={folder / 'report.xml'}",
    ]
    subprocess.run([*command, str(folder)], cwd=_ROOT, check=False, capture_output=True, timeout=60)
    report = ElementTree.parse(folder / "report.xml")
    found = {}
    for case in report.iter("testcase"):
        faults = [fault.text or "" for fault in case if fault.tag in ("failure", "error")]
        found[case.attrib["name"].partition("[")[0]] = "\n".join(faults)
    return found


@pytest.mark.parametrize(
    ("test", "named"),
    [
        ("test_task", "a forgotten one"),
        ("test_session", "Session"),
        ("test_descriptor", "/dev/zero"),
        ("test_thread", "forgotten"),
        ("test_child", "behind: process"),
        ("test_fixture", "PollingTransport"),
    ],
)
def test_a_leak_is_the_fault_of_the_test_that_made_it(verdicts: dict[str, str], test: str, named: str) -> None:
    assert named in verdicts[test]
    assert verdicts[test.replace("test_", "test_no_")] == ""


def test_what_has_failed_is_not_accused_of_more(verdicts: dict[str, str]) -> None:
    assert "on purpose" in verdicts["test_that_fails"]
    assert "left behind" not in verdicts["test_that_fails"]
    assert verdicts["test_that_fails_no_more"] == ""
