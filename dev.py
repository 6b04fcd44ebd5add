#!/usr/bin/env python3
"""Run the project from a fresh checkout: ``python3 dev.py login`` or ``python3 dev.py tests``.

Needs Python 3.11 or newer with ``venv``, nothing else: nox is installed below ``.nox/`` and does the rest. ``tests``
runs every default session of noxfile.py; any other name is that of one session, and what follows ``--`` goes to its
program: ``python3 dev.py tests-3.12 -- -k upgrade``.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
HOME = ROOT / ".nox" / "dev"
BIN = HOME / ("Scripts" if sys.platform == "win32" else "bin")


def install_nox() -> None:
    done = HOME / "constraints.txt"
    if done.exists() and done.read_bytes() == CONSTRAINTS.read_bytes():
        return
    print("Installing nox below .nox/", file=sys.stderr)
    try:
        venv.create(HOME, clear=True, with_pip=True)
    except subprocess.CalledProcessError:
        sys.exit("No virtual environment without ensurepip; on Debian it is in the package python3-venv")
    pip = [str(BIN / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), "nox", "uv"], check=True)
    done.write_bytes(CONSTRAINTS.read_bytes())


def main() -> int:
    if sys.version_info < (3, 11):
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")
    what, *rest = sys.argv[1:] or ["--help"]
    if what in ("-h", "--help"):
        print(__doc__)
        return 0
    install_nox()
    session = [] if what == "tests" and not rest else ["--session", what]
    nox = [str(BIN / "python"), "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), *session, *rest]
    if sys.platform == "win32":
        return subprocess.run(nox).returncode
    # in this process's place, so that Ctrl-C is nox's alone to handle
    os.execv(nox[0], nox)


if __name__ == "__main__":
    sys.exit(main())
