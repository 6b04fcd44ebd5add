"""``python -m tests.fuzz TARGET [libFuzzer's options]`` lets atheris look for bytes that a target fails on."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["brightsocket_anyio"]):
    from .targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:]
    target, examples = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, example in enumerate(examples):
            (Path(corpus) / str(number)).write_bytes(example)
        atheris.Setup([sys.argv[0], corpus, "-timeout=20", "-rss_limit_mb=2000", *options], target)
        atheris.Fuzz()


main()
