"""The code in README and documentation does what it says."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import brightsocket_anyio
from brightsocket_anyio import ChannelRefused, Settings, open_client

from .support import PATIENCE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "brightsocket_anyio"
README = ROOT / "README.md"
PAGES = list((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_blocks(path: Path) -> list[dict[str, Any]]:
    """Run each Python block of a page as a module of its own; returns their namespaces."""
    blocks = []
    for match in FENCE.finditer(path.read_text("utf-8")):
        # with the block's place in the page, so that a traceback points there
        source = "\n" * path.read_text("utf-8")[: match.start(1)].count("\n") + match[1]
        namespace: dict[str, Any] = {"__name__": "block"}
        exec(compile(source, str(path), "exec"), namespace)
        blocks.append(namespace)
    return blocks


async def test_the_server_and_the_client_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    server, client = run_blocks(README)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as task_group:
            bound = await task_group.start(partial(server["api"].serve, port=0))
            await client["main"](bound.url)
            async with open_client(bound.url) as intruder:
                with pytest.raises(ChannelRefused, match="wrong password"):
                    await intruder.connect("GUEST", {"password": "please"})
            task_group.cancel_scope.cancel()
    assert capsys.readouterr().out.splitlines() == ["{'id': 7, 'name': 'Morgiana'}", "hello, everyone"]


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text("utf-8")):
        place = page.parent / target
        assert place.exists() or place.with_suffix(".md").exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_is_included_from_a_file_that_is_tested(page: Path) -> None:
    assert not FENCE.search(page.read_text("utf-8"))


def pinned_versions() -> tuple[dict[str, set[str]], set[str]]:
    """The versions of all packages that the tests install, and which of them are JavaScript peers."""
    versions: dict[str, set[str]] = defaultdict(set)
    for name, version in re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE):
        versions[name].add(version)
    peers = set()
    for folder in ("interop", "browser"):
        packages = json.loads((ROOT / "tests" / folder / "package-lock.json").read_text("utf-8"))["packages"]
        for folder_name in packages[""]["dependencies"]:
            package = packages[f"node_modules/{folder_name}"]
            name = package.get("name", folder_name)
            versions[name].add(package["version"])
            peers.add(name)
    return versions, peers


def test_the_peers_of_the_readme_are_those_that_are_tested() -> None:
    table = README.read_text("utf-8").partition("## Tested peers")[2].partition("\n## ")[0]
    versions, peers = pinned_versions()
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("|")][2:]
    listed = set()
    for peer, said, *_, tests in rows:
        if peer.startswith("`"):
            name = peer.strip("`")
            assert set(said.split(", ")) == versions[name], name
            listed.add(name)
        for path in re.findall("`([^`]+)`", tests):
            assert (ROOT / path).exists(), path
    # which drives Chromium
    assert peers - listed == {"playwright-core"}


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text("utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: brightsocket_anyio\.(\w+)$", reference, re.MULTILINE))
    public = {
        name
        for name, value in vars(brightsocket_anyio).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert documented == public


def test_every_limit_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text("utf-8")
    section = reference.partition("### How much of everything there may be")[2].partition("\n### ")[0]
    names = {
        each.name
        for each in dataclasses.fields(Settings)
        if each.init and re.search("^(max|min)_|_(timeout|rate)$", each.name)
    }
    assert names <= set(re.findall(r"`(\w+)`", section))


def find_tests(path: Path) -> set[str]:
    """The tests of a module, those of its classes with the class."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        names |= {prefix + each.name for each in inside if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in names if name.rpartition("::")[2].startswith("test_")}


def test_every_row_of_the_page_on_reliability_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8").partition("\n## A run of stress\n")[0]
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.endswith("| shown by |")]
    assert len(rows) > 40
    for row in rows:
        shown = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row.split(" | ")[-1])
        assert shown, row
        for path, name in shown:
            assert name in find_tests(ROOT / path), f"{path}::{name}"


def imports(module: Path) -> set[str]:
    """The modules of the package that one of its modules imports, as paths in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = module.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for path in (folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)):
                if path.exists():
                    found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_each_layer_imports_only_from_above_it() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## The life")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    above: set[str] = set()
    for row in rows:
        modules = set(re.findall(r"`([^`]+)`", row))
        for module in modules:
            assert imports(PACKAGE / module) <= above | modules, module
        above |= modules
    assert above == {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("[!_]*.py")}
