"""API keys: made here, kept as hashes in a file, checked in constant time.

A key is ``baton-<id>-<secret>``: the id finds the entry, the secret is 256 random bits. Such a secret cannot be
guessed, so one SHA-256 is as good a hash as a slow one, and a gateway can check thousands a second (ADR 7).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import ConfigError, Unauthenticated

log = logging.getLogger("baton.api")

PREFIX = "baton"
RELOAD_EVERY_S = 1.0
"""How often the file is checked. A key removed from it stops working within this time."""
_KEY = re.compile(rf"{PREFIX}-([a-z0-9]{{8}})-([A-Za-z0-9_-]{{43}})")
_NO_DIGEST = bytes(32)


class KeyEntry(BaseModel):
    """One key as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]{8}$")
    tenant: str = Field(min_length=1, max_length=256)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires: datetime | None = None


class KeyFile(BaseModel):
    """The file: ``keys:`` and a list of entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: Annotated[list[KeyEntry], Field(max_length=100_000)] = []


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller: the tenant that pays, and the key's id, for logs."""

    tenant: str
    key_id: str = ""


def make_key(tenant: str, *, valid_days: float | None = None, now: datetime | None = None) -> tuple[str, KeyEntry]:
    """A new key, and the entry that lets it in. The key itself is kept nowhere.

    Example:
        >>> key, entry = make_key("acme")
        >>> key.startswith(f"baton-{entry.id}-"), entry.tenant, len(entry.sha256)
        (True, 'acme', 64)
    """
    key_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(8))
    key = f"{PREFIX}-{key_id}-{secrets.token_urlsafe(32)}"
    expires = None
    if valid_days is not None:
        expires = ((now or datetime.now(UTC)) + timedelta(days=valid_days)).replace(microsecond=0)
    return key, KeyEntry(id=key_id, tenant=tenant, sha256=hashlib.sha256(key.encode()).hexdigest(), expires=expires)


def read_key_file(path: Path) -> KeyFile:
    """Read the file.

    Raises:
        ConfigError: it cannot be read or is malformed. The text quotes nothing of it.
    """
    try:
        tree = yaml.safe_load(path.read_text()) or {}
        return KeyFile.model_validate(tree)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except pydantic.ValidationError as error:
        where = "; ".join(".".join(str(part) for part in item["loc"]) for item in error.errors()[:5])
        raise ConfigError(f"{path}: malformed at {where}; entries are made by `baton keys`") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{path}: not YAML; entries are made by `baton keys`") from None


def add_to_file(path: Path, entry: KeyEntry) -> None:
    """Put an entry into the file, which is made if it is not there; readable by the owner alone.

    Raises:
        ConfigError: the file is malformed or cannot be written.
    """
    entries = [*read_key_file(path).keys, entry] if path.exists() else [entry]
    text = yaml.safe_dump(
        {"keys": [item.model_dump(mode="json", exclude_none=True) for item in entries]}, sort_keys=False
    )
    partial = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
        partial.rename(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


class ApiKeys:
    """The keys of a file, read again when it changes. A broken file keeps the keys that were good before.

    Raises:
        ConfigError: the file cannot be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._looked_s = 0.0
        self._entries: dict[str, tuple[bytes, KeyEntry]] = {}
        self._stamp = self._stat()
        self._take(read_key_file(path))

    def check(self, key: str) -> Caller:
        """The caller that a key belongs to.

        Raises:
            Unauthenticated: no such key, or it has expired.
        """
        self._reload()
        match = _KEY.fullmatch(key)
        digest, entry = self._entries.get(match[1] if match else "", (_NO_DIGEST, None))
        # The comparison is made for an unknown id, too: neither its time nor the answer reveals which ids exist.
        same = hmac.compare_digest(hashlib.sha256(key.encode(errors="surrogateescape")).digest(), digest)
        if not same or entry is None:
            raise Unauthenticated("the API key is not valid")
        if entry.expires is not None and _aware(entry.expires) <= datetime.now(UTC):
            raise Unauthenticated("the API key has expired")
        return Caller(entry.tenant, entry.id)

    def _reload(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < RELOAD_EVERY_S:
            return
        self._looked_s = now_s
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._take(read_key_file(self._path))
                self._stamp = stamp
                log.info("read %d API keys", len(self._entries))
        except ConfigError as error:
            log.error("the keys known before stay valid: %s", error)

    def _stat(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror}") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _take(self, file: KeyFile) -> None:
        self._entries = {entry.id: (bytes.fromhex(entry.sha256), entry) for entry in file.keys}


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
