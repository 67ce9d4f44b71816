from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ConfigError, Unauthenticated
from cluster.internal_rpc import InternalRpc
from cluster.secret_file import read_secret
from cluster.spec.config import SecuritySettings

SECRET = "0123456789abcdef0123456789abcdef"


def test_the_line_break_is_no_part_of_the_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    assert read_secret(str(tmp_path / "secret"), "x") == SECRET


@pytest.mark.parametrize(
    "content", ["", "\n", "hunter2", "hünter2" * 10, "hunter2" * 5 + "\nhunter2", "hunter2\x00" * 9]
)
def test_a_secret_that_is_none_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"security\.cluster_secret_file") as refused:
        InternalRpc(SecuritySettings(cluster_secret_file=str(path)))
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None  # a decoding error would carry the bytes


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        InternalRpc(SecuritySettings(cluster_secret_file=str(tmp_path / "none")))


@pytest.mark.parametrize("given", ["", SECRET, f"Bearer {SECRET}x", f"bearer {SECRET}", "Bearer ", "Bearer \udcff"])
def test_only_the_whole_secret_counts(tmp_path: Path, given: str) -> None:
    (tmp_path / "secret").write_text(SECRET)
    rpc = InternalRpc(SecuritySettings(cluster_secret_file=str(tmp_path / "secret")))
    with pytest.raises(Unauthenticated) as refused:
        rpc.check({"authorization": given})
    assert SECRET not in str(refused.value)
    rpc.check(dict(rpc.metadata))


def test_without_a_secret_nobody_is_asked() -> None:
    rpc = InternalRpc()
    rpc.check({})
    assert rpc.metadata == ()
