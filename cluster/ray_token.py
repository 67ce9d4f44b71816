"""Ray's token: a local cluster has one of its own, and a joined one is asked whether it wants one.

Ray 2.60 writes a token into the home folder for the first local cluster. From then on `ray start --head` asks for it,
and drivers that join by address do not show it. So the token of a cluster started here lies in that cluster's folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RaySystemError, RpcError

from cluster.errors import ConfigError

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
CONNECT_TIMEOUT_S = 10.0
_SHOW = "set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head, or RAY_AUTH_TOKEN_PATH to a file with that"


@contextlib.contextmanager
def own_token(folder: Path) -> Iterator[None]:
    """Have a cluster that is started inside ask for a token kept in ``folder``; what the environment says stands."""
    if os.environ.get(AUTH_MODE_ENV_VAR, "token") != "token" or any(os.environ.get(name) for name in TOKEN_VARIABLES):
        yield
        return
    path = folder / "auth_token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    with environment(RAY_AUTH_TOKEN_PATH=str(path), **{AUTH_MODE_ENV_VAR: "token"}):
        yield


@contextlib.contextmanager
def token_of(address: str) -> Iterator[None]:
    """Have drivers that join the cluster at ``host:port`` inside show the token, where it asks for one.

    Raises:
        ConfigError: nothing answers there, or the token is missing or another cluster's; the text says what to set.
    """
    if not re.fullmatch(r"[^/\s]+:\d+", address):  # "auto": Ray looks for the token by itself
        yield
        return
    _check_reachable(address)
    mode = os.environ.get(AUTH_MODE_ENV_VAR)
    if mode != "token" and not _refuses(address):
        yield
        return
    if mode not in (None, "token"):
        raise ConfigError(f"the Ray cluster at {address} asks for a token; unset {AUTH_MODE_ENV_VAR}={mode}")
    with environment(**{AUTH_MODE_ENV_VAR: "token"}):
        if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
            raise ConfigError(f"the Ray cluster at {address} asks for a token and none is here; {_SHOW}")
        if _refuses(address):
            raise ConfigError(f"the Ray cluster at {address} refuses the token found here; {_SHOW}")
        yield


def _check_reachable(address: str) -> None:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}); give the address that `ray start --head` printed"
        ) from error


def _refuses(address: str) -> bool:
    try:
        GcsClient(address=address)
    except AuthenticationError:
        return True
    except (RpcError, RaySystemError):
        return False  # whatever it is, joining says it better
    return False


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Have these variables seen by Ray, which caches them, and by processes started inside; as before afterwards."""
    names = {AUTH_MODE_ENV_VAR, *TOKEN_VARIABLES}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(values)
    _forget_cached()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _forget_cached()


def _forget_cached() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
