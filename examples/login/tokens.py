"""Tokens that say who has logged in: signed, so that nobody else can make one, and good for a limited time."""

from __future__ import annotations

import hashlib
import secrets
import time

from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer

from .users import User


class InvalidToken(Exception):
    """A token is not, or no longer, good. The message is a reason that its bearer may read."""


class Tokens:
    """Makes and checks tokens. The key is made anew with each object, so tokens end with the process that made them.

    :param lifetime: how long a token is good, in seconds.
    """

    def __init__(self, lifetime: int) -> None:
        self.lifetime = lifetime
        self._serializer = URLSafeTimedSerializer(
            secrets.token_bytes(32),
            salt="examples.login",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self._revoked: dict[str, float] = {}  # a token's id, and when it would have expired anyway

    def make(self, user: User) -> str:
        """Return a new token for a user who has just shown that it is them."""
        return self._serializer.dumps([secrets.token_hex(8), user.name, user.user_type])

    def check(self, token: object) -> User:
        """Return the user that a token was made for.

        :param token: whatever the client sent.
        :raises InvalidToken: it is not one of ours, has expired, or was revoked.
        """
        return self._load(token)[1]

    def revoke(self, token: object) -> None:
        """Make a token useless from now on, as at a log-out.

        :raises InvalidToken: it was no good before.
        """
        now = time.monotonic()
        self._revoked = {token_id: end for token_id, end in self._revoked.items() if end > now}
        self._revoked[self._load(token)[0]] = now + self.lifetime + 1

    def _load(self, token: object) -> tuple[str, User]:
        if not isinstance(token, str):
            raise InvalidToken("A token is needed: log in first.")
        try:
            token_id, name, user_type = self._serializer.loads(token, max_age=self.lifetime)
        except SignatureExpired:
            raise InvalidToken("Your login has expired. Log in again.") from None
        except BadData:
            raise InvalidToken("This token is not valid. Log in again.") from None
        if token_id in self._revoked:
            raise InvalidToken("You have logged out. Log in again.")
        return token_id, User(name, user_type)
