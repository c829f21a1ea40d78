"""The shared secret of a verifier service: read from a file, sent as ``Bearer``, compared in
constant time. Knows no gRPC, and writes the secret into no message."""

from __future__ import annotations

import functools
import hmac
import logging
from pathlib import Path

from safeladder.errors import ConfigError

log = logging.getLogger(__name__)

METADATA_KEY = "authorization"


def read_token(path: Path) -> str:
    """The file's content without surrounding white space. Raises ``ConfigError``.

    A file that others of this machine can read is named in a warning, once: mounted secrets often
    are like that, and their folder may be closed.
    """
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain ASCII text"
        raise ConfigError(
            f"token file {path} cannot be read ({reason}); write the shared secret into it, "
            "readable by you alone"
        ) from error
    if not token or not token.isprintable():
        raise ConfigError(f"token file {path} must hold one line of text, the shared secret")
    if mode & 0o077:
        _warn(path, mode & 0o777)
    return token


@functools.cache
def _warn(path: Path, mode: int) -> None:
    log.warning(
        "token file %s can be read by others (mode %04o); make it yours alone with `chmod 600 %s`",
        *(path, mode, path),
    )


def header(token: str) -> str:
    """The value of ``METADATA_KEY`` that proves knowledge of the token."""
    return f"Bearer {token}"


def is_authorized(sent: str | bytes | None, token: str) -> bool:
    """Whether ``sent`` is the header of ``token``."""
    given = sent.encode() if isinstance(sent, str) else sent or b""
    return hmac.compare_digest(given, header(token).encode())
