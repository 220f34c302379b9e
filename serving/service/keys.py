"""Bearer keys: a primary and a secondary one, as Azure's endpoints have."""

from __future__ import annotations

import hmac
import logging
import stat
from pathlib import Path

from trainer.errors import RunError

_logger = logging.getLogger(__name__)
_MAX_KEYS = 2


class Keys:
    """The keys that give access to the service."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = tuple(key.encode("ascii") for key in keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file with one key per line: the primary one and, while keys are rotated, a secondary one.

        Raises:
            RunError: the file cannot be read, has no key or too many, or one that HTTP headers cannot carry.
        """
        try:
            text = path.read_text(encoding="utf-8")
            mode = path.stat().st_mode
        except OSError as error:
            raise RunError(f"{path}: the key file cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise RunError(f"{path}: the key file must be text, one key per line") from None
        keys = [line.strip() for line in text.splitlines() if line.strip()]
        if not keys:
            raise RunError(f"{path}: holds no key; create one: openssl rand -hex 32 > {path}")
        if len(keys) > _MAX_KEYS:
            raise RunError(
                f"{path}: must contain a primary and at most a secondary key, got {len(keys)} lines"
            )
        for number, key in enumerate(keys, start=1):
            if not all("!" <= character <= "~" for character in key):
                rule = "must consist of visible ASCII characters, which HTTP headers can carry"
                raise RunError(f"{path}: key {number} {rule}")
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            _logger.warning("%s: every user of this machine can read the keys; chmod 600 the file", path)
        return cls(tuple(keys))

    def open(self, authorization: str) -> bool:
        """Whether an Authorization header contains one of the keys; equally slow for any wrong key."""
        scheme, _, credentials = authorization.partition(" ")
        token = credentials.strip().encode("utf-8", "surrogateescape")
        # Compare with every key, so that the time does not show which one was close.
        matches = [hmac.compare_digest(token, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)
