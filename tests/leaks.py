"""The check that ends every test: what was not there when it began must be gone.

A plugin of pytest's, which conftest.py registers. Tasks are looked at inside the loop, when the test's function is
over; the rest when the test's own fixtures are over, too. Fixtures of a wider scope are not the test's. A test that has
failed already is not checked, since its traceback keeps alive what it names.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Generator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any
from weakref import WeakSet

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Client, Connection
from brightsocket_anyio.connection import ConnectionCore
from brightsocket_anyio.server import Server
from brightsocket_anyio.session import Session
from brightsocket_anyio.transports.asgi import ASGIWebSocketTransport
from brightsocket_anyio.transports.httpx_polling import HttpxPollingTransport
from brightsocket_anyio.transports.polling import PollingTransport
from brightsocket_anyio.transports.stream import StreamTransport
from brightsocket_anyio.transports.trio_websocket import TrioWebSocketTransport

#: what of ours lives in a scope, and must not outlive it
OURS: tuple[type, ...] = (
    Server,
    Session,
    Client,
    ConnectionCore,
    Connection,
    ASGIWebSocketTransport,
    HttpxPollingTransport,
    PollingTransport,
    StreamTransport,
    TrioWebSocketTransport,
)

#: checkpoints that a task which has been cancelled may take to end, and what a fixture has begun may take to start
_STEPS = 10
#: seconds that a thread may take to end once it has nothing to do any more
_LAST_SECONDS = 5

_FAILED: pytest.StashKey[bool] = pytest.StashKey()

_alive: WeakSet[Any] = WeakSet()
_kept_children: set[int] = set()
_kept_descriptors: set[str] = set()


def _register(cls: Any) -> None:
    """Have each object of a class known: to look for them among all objects would take longer than most tests."""
    init = cls.__init__

    @functools.wraps(init)
    def registering(self: Any, *args: Any, **kwargs: Any) -> None:
        _alive.add(self)
        init(self, *args, **kwargs)

    cls.__init__ = registering


def pytest_configure(config: pytest.Config) -> None:
    for cls in OURS:
        _register(cls)


@pytest.hookimpl(wrapper=True)
def pytest_collection_finish(session: pytest.Session) -> Generator[None]:
    """Make what is made once, and take what there is out of the garbage collector's view."""
    yield
    with contextlib.suppress(ImportError):
        import uvloop

        # libuv's pipe for signals
        uvloop.new_event_loop().close()
    gc.collect()
    gc.freeze()


class Census:
    """What there is now."""

    def __init__(self) -> None:
        self._objects = WeakSet(_alive)
        self._descriptors = _descriptors()
        self._threads = set(_threads())
        self._children = _children()

    def objects(self) -> list[str]:
        """Our objects that have been made since, and are alive."""
        # they hold each other when they are over, and the last test's are young
        for generation in (1, 2):
            if self._made():
                gc.collect(generation)
        return self._made()

    def _made(self) -> list[str]:
        return [type(each).__name__ for each in _alive if each not in self._objects]

    def others(self) -> list[str]:
        """Descriptors, threads and child processes that have come since."""
        threads = [each for each in _threads() if each not in self._threads]
        for thread in threads:
            thread.join(_LAST_SECONDS / len(threads))
        found = [f"{each.name}, a thread" for each in threads if each.is_alive()]
        for child in self.children():
            with contextlib.suppress(OSError):
                found.append(f"process {child} ({Path(f'/proc/{child}/comm').read_text().strip()})")
        found += [f"descriptor {each} ({os.readlink(each)})" for each in self.descriptors()]
        return found

    def children(self) -> set[int]:
        return _children() - self._children - _kept_children

    def descriptors(self) -> set[str]:
        return _descriptors() - self._descriptors - _kept_descriptors


@contextlib.contextmanager
def of_a_wider_scope() -> Generator[None]:
    """The processes that begin in here, and the descriptors, are those of a fixture that starts them when the first
    test asks for them."""
    before = Census()
    yield
    _kept_children.update(before.children())
    _kept_descriptors.update(before.descriptors())


def _threads() -> list[threading.Thread]:
    """The threads but those that Trio keeps for the next one who needs one."""
    return [each for each in threading.enumerate() if not each.name.startswith("Trio thread")]


def _descriptors() -> set[str]:
    """The open descriptors' paths, but for that of the list itself."""
    return {path for name in os.listdir("/dev/fd") if os.path.lexists(path := f"/dev/fd/{name}")}


def _children() -> set[int]:
    """The numbers of the child processes."""
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def nothing_outlives_the_test(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """Autouse, so that it begins before the test's other fixtures of this scope, and ends after them."""
    before = Census()
    yield
    if request.node.stash.get(_FAILED, False):
        return
    # pytest keeps what was logged, which keeps what it names
    for record in [*caplog.get_records("setup"), *caplog.get_records("call")]:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
    if left := [*before.objects(), *before.others()]:
        pytest.fail(f"it has left behind: {', '.join(left)}", pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    test = pyfuncitem.obj
    if not iscoroutinefunction(test):
        return (yield)
    pyfuncitem.obj = _leaving_no_tasks(test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _leaving_no_tasks(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> None:
        await _take_steps()
        before = {task.id for task in anyio.get_running_tasks()}
        await test(*args, **kwargs)
        await _take_steps()
        left = [str(task.name) for task in anyio.get_running_tasks() if task.id not in before]
        if left:
            pytest.fail(f"it has left tasks behind: {', '.join(left)}", pytrace=False)

    return checked


async def _take_steps() -> None:
    for _ in range(_STEPS):
        await anyio.lowlevel.checkpoint()
