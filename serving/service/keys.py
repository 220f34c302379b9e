"""Who may ask: bearer keys, as Azure's endpoints have a primary and a secondary one."""

from __future__ import annotations

import hmac
import logging
import stat
from pathlib import Path

from trainer.errors import RunError

_logger = logging.getLogger(__name__)
_MOST = 2


class Keys:
    """The keys that open the service."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = tuple(key.encode("ascii") for key in keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file with one key a line: the primary one and, while keys are rotated, a secondary one.

        Raises:
            RunError: it cannot be read, holds no key, more than two, or one that no HTTP header can carry.
        """
        try:
            text = path.read_text(encoding="utf-8")
            mode = path.stat().st_mode
        except OSError as error:
            raise RunError(f"{path}: the key file cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise RunError(f"{path}: the key file must be text, one key a line") from None
        keys = [line.strip() for line in text.splitlines() if line.strip()]
        if not keys:
            raise RunError(f"{path}: holds no key; write one into it: openssl rand -hex 32 > {path}")
        if len(keys) > _MOST:
            raise RunError(f"{path}: must hold a primary and at most a secondary key, got {len(keys)} lines")
        for number, key in enumerate(keys, start=1):
            if not all("!" <= character <= "~" for character in key):
                rule = "a key must be of visible ASCII characters, without blanks"
                raise RunError(f"{path}: key {number}: {rule}, or no HTTP header can carry it")
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            _logger.warning("%s: everybody on this machine can read the keys; chmod 600 it", path)
        return cls(tuple(keys))

    def open(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds one of the keys; takes equally long for any wrong one."""
        scheme, _, given = (authorization or "").partition(" ")
        token = given.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, so that the time says nothing of which one is near.
        matches = [hmac.compare_digest(token, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)
