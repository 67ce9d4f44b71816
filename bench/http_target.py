"""OpenAI's HTTP interface as a target: vLLM's own server, Baton's, or any other."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from bench.http_wire import Connection, RawReply, events
from bench.record import Message, RequestRecord, settle
from bench.target import RequestStyle
from bench.workload import PlannedRequest, prompt_ids, prompt_text
from cluster.errors import ConfigError, ModelNotFound, WorkerDied


class HttpTarget:
    """An endpoint such as ``http://127.0.0.1:8000``, with idle connections kept for the next request."""

    def __init__(self, url: str, *, api_key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"endpoint {url!r}: expected http://host:port or grpc://host:port")
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._idle: list[Connection] = []

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self._host, self._port, ssl=ssl.create_default_context() if self._tls else None
        )
        return connection

    def _request(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{self._authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def model(self) -> str:
        """The first model of ``/v1/models``."""
        try:
            async with asyncio.timeout(30):
                connection = await self._connection()
                reply = await connection.exchange(self._request("GET", "/v1/models"))
        except (OSError, TimeoutError) as error:
            raise WorkerDied(f"no answer from {self._host}:{self._port}: {error or 'timeout'}") from error
        self._idle.append(connection)
        try:
            name: str = json.loads(b"".join(part for _, part in reply.body()))["data"][0]["id"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelNotFound(f"{self._host}:{self._port} lists no model (status {reply.status()})") from error
        return name

    async def send(self, request: PlannedRequest, style: RequestStyle, epoch_s: float) -> RequestRecord:
        """Send one request; see `Target`."""
        record = RequestRecord(request.index, request.isl_tokens, request.osl_tokens)
        path = "/v1/chat/completions" if style.api == "chat" else "/v1/completions"
        message = self._request("POST", path, json.dumps(_body(request, style)).encode())
        start_s = time.perf_counter()
        record.start_s = start_s - epoch_s
        connection: Connection | None = None
        try:
            async with asyncio.timeout(style.timeout_s):
                connection = await self._connection()
                reply = await connection.exchange(message)
        except TimeoutError:
            record.failure, record.detail = "timeout", f"no end within {style.timeout_s:g} s"
        except OSError as error:
            record.failure = "broken" if connection is not None else "connect"
            record.detail = str(error)
        else:
            read_reply(record, reply, start_s, exact=style.ignore_eos)
            if reply.complete and connection.usable:
                self._idle.append(connection)
                connection = None
        if connection is not None:
            connection.close()
        record.end_s = time.perf_counter() - start_s
        return record

    async def close(self) -> None:
        """Close idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _body(request: PlannedRequest, style: RequestStyle) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": style.model,
        "max_tokens": request.osl_tokens,
        "temperature": style.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if style.ignore_eos:
        body["ignore_eos"] = True
    if style.count_ids:
        body["return_token_ids"] = True
    if style.api == "chat":
        body["messages"] = [{"role": "user", "content": prompt_text(request, seed=style.seed)}]
    elif style.prompt == "text":
        body["prompt"] = prompt_text(request, seed=style.seed)
    else:
        body["prompt"] = prompt_ids(request, seed=style.seed, low=style.low_id, high=style.high_id)
    return body


def read_reply(record: RequestRecord, reply: RawReply, start_s: float, *, exact: bool) -> None:
    """Fill in a record from a streamed reply."""
    status = reply.status()
    if status != 200:
        record.failure = f"http {status}" if status else "broken"
        record.detail = b"".join(part for _, part in reply.body())[:300].decode(errors="replace")
        return
    messages: list[Message] = []
    usage: dict[str, Any] = {}
    done = False
    for at_s, data in events(reply):
        if data == b"[DONE]":
            done = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            record.failure, record.detail = "malformed", data[:200].decode(errors="replace")
            break
        if "error" in event:
            record.failure, record.detail = "error event", json.dumps(event["error"])[:300]
            break
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            messages.append(_message(choice, at_s - start_s))
    if not record.failure and not (done and reply.complete):
        record.failure, record.detail = "broken", "the stream ended before [DONE]"
    record.prompt_tokens = int(usage.get("prompt_tokens") or 0)
    details = usage.get("completion_tokens_details") or {}
    record.reasoning_tokens = int(details.get("reasoning_tokens") or 0)
    counted = usage.get("completion_tokens")
    settle(record, messages, None if counted is None else int(counted), exact=exact)


def _message(choice: dict[str, Any], at_s: float) -> Message:
    delta = choice.get("delta")
    ids = choice.get("token_ids")
    count = -1 if ids is None else len(ids)
    if delta is None:
        return Message(at_s, bool(choice.get("text")), answer=False, token_ids=count)
    content = bool(delta.get("content"))
    reasoning = bool(delta.get("reasoning_content") or delta.get("reasoning"))
    return Message(at_s, content or reasoning, answer=content, token_ids=count)
