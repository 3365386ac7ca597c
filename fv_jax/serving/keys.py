"""Keys of users. A key names a user and is signed by the server, so that nobody can make one up.

    key = 'fv_' + user + '_' + signature;  user = 16 random bytes;  signature = HMAC-SHA256(secret | password, user)

The same key is the bearer token of a program and the cookie of a browser. Another password makes all keys invalid.
"""

import hashlib
import hmac
import re
import secrets

from fv_jax.core.checks import require

MIN_PASSWORD = 8
_KEY = re.compile(r'fv_([0-9a-f]{32})_([0-9a-f]{64})')


class Keys:
    """Makes and checks keys."""

    def __init__(self, secret: bytes, password: str | None = None):
        """Makes the keys of a server.

        Args:
          secret: random bytes that the server keeps.
          password: that a new user has to know; None lets everyone who reaches the server have a key.

        Raises:
          ValueError: the password is too short.
        """
        if password is not None:
            short = f'the password has {len(password)} characters; use at least {MIN_PASSWORD}'
            require(len(password) >= MIN_PASSWORD, short)
        self._password = None if password is None else _digest(password)
        self._secret = secret + (self._password or b'')

    @property
    def needs_password(self) -> bool:
        return self._password is not None

    def check_password(self, given: str) -> bool:
        """Returns whether this is the password, in a time that does not depend on how it differs."""
        return self._password is None or hmac.compare_digest(_digest(given), self._password)

    def create(self) -> str:
        """Returns the key of a new user."""
        user = secrets.token_hex(16)
        return f'fv_{user}_{self._sign(user)}'

    def find_user(self, key: str | None) -> str | None:
        """Returns the user of a key; None for what is no key of this server."""
        match = _KEY.fullmatch(key or '')
        if match is None or not hmac.compare_digest(self._sign(match[1]), match[2]):
            return None
        return match[1]

    def _sign(self, user: str) -> str:
        return hmac.new(self._secret, user.encode(), hashlib.sha256).hexdigest()


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode()).digest()
