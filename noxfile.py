"""The project's checks: ``nox`` runs them all, ``nox -s tests-3.12 -- -k upgrade`` a part; dev.py brings nox along.

A tool that is missing (a Python, Node, Chromium) is an error where CI is set, elsewhere a skip that says so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
PYPROJECT = nox.project.load_toml("pyproject.toml")
INTEROP = Path("tests/interop")
BROWSER = Path("tests/browser")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# Every installation is a pinned one, that of the build backend too.
for variable in ("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "PIP_CONSTRAINT"):
    os.environ[variable] = str(Path("constraints.txt").resolve())

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = CI
nox.options.sessions = ["lint", "types", "docs", "fuzz", "interop", "tests"]


def install(session: nox.Session, *groups: str, editable: bool = True) -> None:
    """Install the project with its extra and some of its dependency groups."""
    project = ["--editable", ".[uvloop]"] if editable else [".[uvloop]"]
    session.install(*project, *nox.project.dependency_groups(PYPROJECT, *groups))


def need(session: nox.Session, purpose: str, *names: str) -> str:
    """The path of the first of some programs that this machine has."""
    for name in names:
        if path := shutil.which(name):
            return path
    message = f"{' or '.join(names)} is not installed, and {purpose}"
    if CI:
        session.error(message)
    session.skip(message)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check all types, and that every public name has one."""
    install(session, "types", editable=False)
    session.run("mypy")
    need(session, "pyright runs on it", "node")
    session.run("pyright", "--verifytypes", "brightsocket_anyio", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; its examples are run by tests/test_docs.py."""
    install(session, "docs")
    session.run("sphinx-build", "-E", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


def install_node_packages(session: nox.Session, folder: Path) -> None:
    """Install exactly what a folder's package-lock.json names."""
    need(session, "the JavaScript peers run on it", "node")
    npm = need(session, "it installs the JavaScript peers", "npm")
    with session.chdir(folder):
        session.run(npm, "ci", "--no-audit", "--no-fund", external=True)


@nox.session
def interop(session: nox.Session) -> None:
    """Talk to every peer that we say we can talk to: on Node, in a real browser, under ASGI servers, behind nginx."""
    need(session, "the pages are tested in it", *CHROMIUM)
    need(session, "one test is behind it", "nginx", "/usr/sbin/nginx")
    for folder in (INTEROP, BROWSER):
        install_node_packages(session, folder)
    install(session, "test")
    posargs = session.posargs or [str(INTEROP), str(BROWSER)]
    # a worker for each core: most of the time goes to starting peers; tests of the same peer go to the same worker
    session.run("pytest", "--numprocesses=auto", "--dist=loadgroup", *posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on all three loops; the first Python measures what they reach, which costs a third of its time."""
    install(session, "test")
    data = {"COVERAGE_FILE": f".coverage.{session.python}"}
    others = [f"--ignore={folder}" for folder in (INTEROP, BROWSER)]
    # a worker for each core: many tests wait for processes and deadlines
    command = ["pytest", "--numprocesses=auto", *others, *session.posargs]
    if session.python != PYTHONS[0]:
        session.run(*command)
        return
    session.run("coverage", "erase", env=data)
    session.run("coverage", "run", "-m", *command, env=data)
    if not session.posargs:
        session.notify("coverage")


@nox.session
def coverage(session: nox.Session) -> None:
    """Put together what the tests have reached on all loops and Pythons, and check it."""
    session.install("coverage[toml]")
    session.run("coverage", "combine")
    session.run("coverage", "report", "--fail-under=95")
    session.run("coverage", "report", "--include=brightsocket_anyio/protocol/*", "--fail-under=100")


@nox.session(default=False)
def stress(session: nox.Session) -> None:
    """Everything at once, for minutes or hours, checking itself; a seed replays it."""
    install(session, "test")
    session.run("python", "-m", "tests.stress", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure what messages and connections cost, beside others' servers; ``-- --quick`` takes a few minutes.

    The whole of it, without options, is what the documentation shows.
    """
    need(session, "one of the peers runs on it", "node")
    install_node_packages(session, INTEROP)
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["--output", "docs/benchmark"]))


@nox.session
def fuzz(session: nox.Session) -> None:
    """Let atheris look for bytes that our parsers fail on; ``-- 600 http``: for 600 seconds, at one target."""
    install(session, "test", "fuzz")
    seconds, *names = session.posargs or ["5"]
    targets = ["packets", "payloads", "json_text", "socketio_packets", "sessions", "http", "websocket", "polling"]
    for name in names or targets:
        session.run("python", "-m", "tests.fuzz", name, f"-max_total_time={seconds}", "-print_final_stats=1")


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Look up the pinned packages in the database of known vulnerabilities, for which it needs the network."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "audit"))
    session.run("pip-audit", "--requirement", "constraints.txt", "--disable-pip", "--no-deps", "--strict")


@nox.session(default=False)
def login(session: nox.Session) -> None:
    """Start the login example and print its address."""
    install(session, "examples")
    # at Ctrl-C it says goodbye to its clients
    session.run("python", "-m", "examples.login", *session.posargs, interrupt_timeout=15)


@nox.session(default=False)
def pin(session: nox.Session) -> None:
    """Write constraints.txt anew, with today's versions."""
    session.install("uv")
    groups = [f"--group={group}" for group in PYPROJECT["dependency-groups"]]
    options = ["--universal", "--python-version", PYTHONS[0], "--upgrade", "--no-annotate", "--quiet"]
    command = ["uv", "pip", "compile", *options, "--all-extras", *groups, "pyproject.toml"]
    unpinned = {"UV_CONSTRAINT": None, "UV_BUILD_CONSTRAINT": None, "UV_CUSTOM_COMPILE_COMMAND": "nox -s pin"}
    session.run(*command, "--output-file", "constraints.txt", env=unpinned)
