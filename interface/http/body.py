"""Reading a JSON body of limited size, and the errors of that."""

from __future__ import annotations

import asyncio
import codecs
import json
import zlib
from typing import Any, NoReturn

from aiohttp import web

from cluster.errors import InvalidRequest, RequestTooLarge

_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
_NOT_STATED = frozenset({"", "application/x-www-form-urlencoded"})
"""What programs send that state no type: nothing, or what ``curl -d`` writes by itself."""


async def read_json(request: web.Request, limit_bytes: int, timeout_s: float) -> Any:
    """The body as JSON. The application's ``client_max_size`` stops the read at the limit.

    Raises:
        RequestTooLarge: it is longer than ``limit_bytes``, as it came or inflated; a length given in the header is
            refused unread.
        InvalidRequest: it is not JSON in UTF-8, or did not come within ``timeout_s`` seconds.
    """
    _check_type(request)
    encoding = request.headers.get("Content-Encoding", "").strip().lower() or "identity"
    if encoding != "identity" and encoding not in _COMPRESSED:
        raise InvalidRequest("Content-Encoding: send the body as it is, or compressed by gzip or deflate")
    if (request.content_length or 0) > limit_bytes:
        raise too_large(limit_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            data = await request.read()
    except TimeoutError as error:
        raise InvalidRequest(f"the body did not come within {timeout_s:g} s") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large(limit_bytes) from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("the body could not be read: its transfer encoding is broken") from error
    return parse_json(inflate(data, limit_bytes) if encoding in _COMPRESSED else data)


def _check_type(request: web.Request) -> None:
    """Take JSON, and from programs a body without a type.

    A browser sends a page's request to another site without asking first if it has one of these types. Such a request
    names the page's origin, and must be stated to be JSON: that needs a preflight, which only allowed origins pass.
    """
    if request.content_type == "application/json" and "Content-Type" in request.headers:
        return
    stated = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if stated not in _NOT_STATED or "Origin" in request.headers:
        raise InvalidRequest("send the body as JSON, with Content-Type: application/json")


def inflate(data: bytes, limit_bytes: int) -> bytes:
    """Undo gzip or deflate (zlib), making no more than the limit and one byte.

    aiohttp would inflate by itself, but also bodies that nobody reads, such as those of callers without a key.

    Raises:
        RequestTooLarge: inflated, it is longer than ``limit_bytes``.
        InvalidRequest: it is not what its header says, or incomplete.

    Example:
        >>> inflate(zlib.compress(b"{}"), 2)
        b'{}'
    """
    # 32 more: gzip or zlib, by the first bytes.
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = inflater.decompress(data, limit_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest("the body could not be inflated: it is neither gzip nor deflate, or damaged") from error
    if len(plain) > limit_bytes:
        raise too_large(limit_bytes)
    if not inflater.eof:
        raise InvalidRequest("the body could not be inflated: it ends too early")
    if inflater.unused_data:
        # A member has 20 bytes or more, so a body could have hundreds of thousands; clients send one.
        raise InvalidRequest("the body could not be inflated: something follows the compressed data")
    return plain


def parse_json(data: bytes) -> Any:
    """Parse strictly: UTF-8, no NaN, no half surrogate pairs, no nesting that overflows the stack.

    A byte order mark may stand before it: editors and PowerShell write one.

    Raises:
        InvalidRequest: it is not so.

    Example:
        >>> parse_json(b'{"n": 1}')
        {'n': 1}
        >>> parse_json(b'{"n": NaN}')
        Traceback (most recent call last):
            ...
        cluster.errors.InvalidRequest: the body is not JSON: NaN and Infinity are no JSON numbers
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise InvalidRequest("the body is empty")
    try:
        text = data.decode()
        tree = json.loads(text, parse_constant=_no_constant)
        if "\\ud" in text or "\\uD" in text:
            # An escaped half of a surrogate pair parses, but is no text: it could not be tokenised.
            json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} is wrong") from error
    except UnicodeEncodeError as error:
        raise InvalidRequest("the body holds a lone surrogate, which is no text") from error
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error
    except ValueError as error:
        # Python refuses to parse integers of thousands of digits.
        raise InvalidRequest("the body is not JSON that can be read: a number is too long") from error
    return tree


def too_large(limit_bytes: int) -> RequestTooLarge:
    """The error of a body over the limit."""
    return RequestTooLarge(f"the body is over the limit of {limit_bytes} bytes")


def _no_constant(name: str) -> NoReturn:
    raise InvalidRequest("the body is not JSON: NaN and Infinity are no JSON numbers")
