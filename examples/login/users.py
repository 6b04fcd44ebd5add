"""Who may log in: a table in SQLite, with passwords that only their Argon2 hashes tell of."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    name          TEXT PRIMARY KEY COLLATE NOCASE,
    user_type     TEXT NOT NULL,
    password_hash TEXT NOT NULL
)
"""


@dataclass(frozen=True, slots=True)
class User:
    """One person. ``user_type`` is the name of the channel that is theirs once they have logged in."""

    name: str
    user_type: str


class Users:
    """The users in a database file. Its methods work in threads: neither SQLite nor Argon2 may block the event loop.

    :param path: the database file, made when it is not there.
    :param hasher: how passwords are hashed; the default follows RFC 9106.
    """

    def __init__(self, path: Path, hasher: PasswordHasher | None = None) -> None:
        self._path = path
        self._hasher = hasher or PasswordHasher()
        # Argon2 takes 64 MiB for each password on purpose; this bounds what a crowd at the door can make it take.
        self._threads = anyio.CapacityLimiter(4)
        self._unknown = self._hasher.hash(secrets.token_hex())
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(SCHEMA)

    async def put(self, name: str, password: str, user_type: str) -> None:
        """Add a user, or give one who is there another password and type."""
        await anyio.to_thread.run_sync(self._put, name, password, user_type, limiter=self._threads)

    async def authenticate(self, name: str, password: str) -> User | None:
        """Return the user whose name and password these are, if any.

        An unknown name takes as long as a wrong password does, so that nobody can find out which names exist.
        """
        return await anyio.to_thread.run_sync(self._authenticate, name, password, limiter=self._threads)

    async def everyone(self) -> list[User]:
        """Return every user, by name."""
        return await anyio.to_thread.run_sync(self._everyone, limiter=self._threads)

    def _put(self, name: str, password: str, user_type: str) -> None:
        password_hash = self._hasher.hash(password)
        with closing(sqlite3.connect(self._path)) as database, database:
            database.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?)", (name, user_type, password_hash))

    def _authenticate(self, name: str, password: str) -> User | None:
        with closing(sqlite3.connect(self._path)) as database:
            row = database.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
        try:
            self._hasher.verify(row[2] if row else self._unknown, password)
        except VerifyMismatchError:
            return None
        return User(row[0], row[1]) if row else None

    def _everyone(self) -> list[User]:
        with closing(sqlite3.connect(self._path)) as database:
            return [User(*row) for row in database.execute("SELECT name, user_type FROM users ORDER BY name")]
