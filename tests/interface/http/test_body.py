"""Bodies as clients send them: compressed, with a byte order mark, without a content type."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest, RequestTooLarge
from interface.http.body import inflate
from tests.fakes.backend import MODEL
from tests.interface.conftest import LIMIT_BYTES, Edge

PATH = "/v1/completions"
JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"model": MODEL, "prompt": "Hi"}).encode()


async def send(edge: Edge, data: Any, headers: dict[str, str]) -> tuple[int, Any]:
    skipped = [] if "Content-Type" in headers else ["Content-Type"]
    async with edge.session.post(f"{edge.url}{PATH}", data=data, headers=headers, skip_auto_headers=skipped) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
        ("", BODY),
        ("gzip", gzip.compress(codecs.BOM_UTF8 + BODY, mtime=0)),
    ],
)
async def test_a_compressed_body_is_taken(edge: Edge, encoding: str, data: bytes) -> None:
    status, _ = await send(edge, data, {**JSON, "Content-Encoding": encoding})
    assert status == 200
    assert edge.backend.requests[0].prompt == "Hi"


async def test_other_encodings_are_refused_by_name(edge: Edge) -> None:
    for encoding in ("br", "zstd", "wat", "gzip, gzip"):
        status, answer = await send(edge, b"\x1f\x8b", {**JSON, "Content-Encoding": encoding})
        assert status == 400
        assert "gzip or deflate" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (BODY, "damaged"),
        (gzip.compress(BODY, mtime=0)[:-1], "ends too early"),
        (b"", "ends too early"),
        (gzip.compress(BODY, mtime=0) + b"x", "follows"),
        (gzip.compress(BODY, mtime=0) + gzip.compress(BODY), "follows"),
        (gzip.compress(b"", mtime=0), "empty"),
        (gzip.compress(b"\xff", mtime=0), "UTF-8"),
    ],
)
async def test_what_is_not_gzip_is_refused(edge: Edge, data: bytes, text: str) -> None:
    status, answer = await send(edge, data, {**JSON, "Content-Encoding": "gzip"})
    assert status == 400
    assert text in answer["error"]["message"]
    assert edge.backend.requests == []


async def test_the_limit_holds_for_the_inflated_body(edge: Edge) -> None:
    just = b'{"model": "m", "prompt": "' + b"x" * (LIMIT_BYTES - 28) + b'"}'
    for plain, expected in ((just, 200), (just + b" ", 413), (b" " * (50 << 20), 413)):
        data = gzip.compress(plain, mtime=0)
        assert len(data) < LIMIT_BYTES
        status, answer = await send(edge, data, {**JSON, "Content-Encoding": "gzip"})
        assert status == expected
        if status == 413:
            assert answer["error"]["code"] == "request_too_large"
            assert str(LIMIT_BYTES) in answer["error"]["message"]


@given(
    plain=st.binary(max_size=200), limit_bytes=st.integers(0, 250), pack=st.sampled_from([gzip.compress, zlib.compress])
)
def test_inflating_gives_what_was_packed_within_the_limit(plain: bytes, limit_bytes: int, pack: Any) -> None:
    if len(plain) <= limit_bytes:
        assert inflate(pack(plain), limit_bytes) == plain
    else:
        with pytest.raises(RequestTooLarge):
            inflate(pack(plain), limit_bytes)


@given(data=st.binary(max_size=100))
def test_any_bytes_inflate_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest, RequestTooLarge):
        assert len(inflate(data, 50)) <= 50


async def test_a_byte_order_mark_is_passed_over(edge: Edge) -> None:
    assert (await send(edge, codecs.BOM_UTF8 + BODY, JSON))[0] == 200


@pytest.mark.parametrize(
    "kind",
    [None, "", "application/x-www-form-urlencoded", "application/json", "application/JSON; charset=utf-8"],
)
async def test_a_program_need_not_state_the_type(edge: Edge, kind: str | None) -> None:
    """`curl -d` states that of a form."""
    assert (await send(edge, BODY, {} if kind is None else {"Content-Type": kind}))[0] == 200


async def test_another_type_is_refused(edge: Edge) -> None:
    for kind in ("text/plain", "multipart/form-data", "application/octet-stream", "x"):
        status, answer = await send(edge, BODY, {"Content-Type": kind})
        assert status == 400
        assert "Content-Type: application/json" in answer["error"]["message"]


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
async def test_a_page_cannot_send_a_request_without_a_preflight(edge: Edge, kind: str | None) -> None:
    headers = {"Origin": "https://elsewhere.example"} | ({} if kind is None else {"Content-Type": kind})
    assert (await send(edge, BODY, headers))[0] == 400
    assert edge.backend.requests == []
