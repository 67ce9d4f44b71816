"""Reading a JSON body of limited size, and the errors of that."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from aiohttp import web

from cluster.errors import InvalidRequest, RequestTooLarge


async def read_json(request: web.Request, limit_bytes: int, timeout_s: float) -> Any:
    """The body as JSON. The application's ``client_max_size`` stops the read at the limit.

    Raises:
        RequestTooLarge: it is longer than ``limit_bytes``; a length given in the header is refused unread.
        InvalidRequest: it is not JSON in UTF-8, or did not come within ``timeout_s`` seconds.
    """
    if request.content_type != "application/json":
        raise InvalidRequest("send the body as JSON, with Content-Type: application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidRequest("send the body uncompressed, without Content-Encoding")
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
    return parse_json(data)


def parse_json(data: bytes) -> Any:
    """Parse strictly: UTF-8, no NaN, no half surrogate pairs, no nesting that overflows the stack.

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
