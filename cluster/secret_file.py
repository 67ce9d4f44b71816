"""Reading what must not be seen: keys, certificates, secrets. Errors name the file and never quote it."""

from __future__ import annotations

import hmac
from pathlib import Path

from cluster.errors import ConfigError
from cluster.model.model_path import expand

MIN_SECRET_CHARS = 32


def read_bytes(path: str, name: str) -> bytes:
    """Content of the file that the spec's field ``name`` points to. ``~`` and ``${VAR}`` are expanded.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        data = Path(expand(path)).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}={path}: cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ConfigError(f"{name}={path}: the file is empty")
    return data


def read_secret(path: str, name: str) -> str:
    """The one line of a secret file, without its line break.

    Raises:
        ConfigError: unreadable, too short to be safe, or more than one line of printable ASCII.
    """
    try:
        secret = read_bytes(path, name).decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}={path}: expected one line of printable ASCII") from None
    if not secret.isprintable():
        raise ConfigError(f"{name}={path}: expected one line of printable ASCII")
    if len(secret) < MIN_SECRET_CHARS:
        raise ConfigError(f"{name}={path}: expected at least {MIN_SECRET_CHARS} characters, got {len(secret)}")
    return secret


def same_secret(given: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on how much of them is."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())
