"""Authentication of callers: keys, tokens, TLS, and the limits of the listeners."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.v1 import cluster_pb2, inference_pb2
from cluster.errors import ConfigError, Unauthenticated
from cluster.spec.config import GatewaySettings, SecuritySettings
from interface.api_keys import add_to_file, make_key
from interface.authentication import Authentication
from interface.client.client import AsyncClient
from interface.client.credentials import Credentials
from interface.grpc_server import serve_grpc
from interface.http.idle import IdleSweeper
from interface.http.server import serve_http
from tests.fakes.backend import FakeBackend, Stall, admitted, delta, reply, script
from tests.interface.conftest import SETTINGS
from tests.support.certificates import Authority

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CHAT = {"model": "tiny-thinker", "messages": [{"role": "user", "content": "Hi"}]}


class House:
    """Both servers behind one authentication."""

    def __init__(self, backend: FakeBackend, grpc_port: int, http_port: int, scheme: str) -> None:
        self.backend = backend
        self.grpc = f"127.0.0.1:{grpc_port}"
        self.http_port = http_port
        self.url = f"{scheme}://127.0.0.1:{http_port}"


@contextlib.asynccontextmanager
async def house(security: SecuritySettings, settings: GatewaySettings = SETTINGS) -> AsyncIterator[House]:
    backend, authentication = FakeBackend(), Authentication(security)
    server, grpc_port = await serve_grpc(backend, settings, authentication)
    runner, http_port = await serve_http(backend, settings, authentication)
    try:
        yield House(backend, grpc_port, http_port, "https" if security.tls else "http")
    finally:
        await runner.cleanup()
        await server.stop(0)


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[SecuritySettings, str]:
    key, entry = make_key("acme")
    add_to_file(tmp_path / "keys.yaml", entry)
    return SecuritySettings(api_keys_file=str(tmp_path / "keys.yaml")), key


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x"])
async def test_without_a_valid_key_nothing_but_health_answers(
    keyed: tuple[SecuritySettings, str], header: str | None
) -> None:
    security, key = keyed
    metadata = None if header is None else (("authorization", header.format(key=key)),)
    headers = {} if header is None else {"Authorization": header.format(key=key)}
    calls = {
        "/baton.v1.Inference/Generate": inference_pb2.GenerateRequest(prompt="Hi"),
        "/baton.v1.Inference/ListModels": inference_pb2.ListModelsRequest(),
        "/baton.v1.Cluster/GetStatus": cluster_pb2.GetStatusRequest(),
        "/baton.v1.Cluster/WatchStatus": cluster_pb2.WatchStatusRequest(),
        "/no.such/Method": cluster_pb2.GetStatusRequest(),
    }
    paths = [
        "/v1/models",
        "/v1/models/tiny-thinker",
        "/v1/status",
        "/",
        "/no/such",
        "/health/x",
        "/metrics",
    ]
    async with house(security) as place, grpc.aio.insecure_channel(place.grpc) as channel:
        for method, message in calls.items():
            call = channel.unary_stream(method, request_serializer=lambda m: m.SerializeToString())(
                message, metadata=metadata, timeout=10
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(aiter(call))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
            assert key not in str(refused.value.details())
        # One message and the end: a client that is still writing when it is refused may see its write fail instead.
        reflection = channel.unary_stream(REFLECTION)(b"", metadata=metadata, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(reflection))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        async with aiohttp.ClientSession(place.url, headers=headers) as session:
            for path in paths:
                async with session.get(path) as answer:
                    assert answer.status == 401, path
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                    assert (await answer.json())["error"]["code"] == "invalid_api_key"
            async with session.post("/v1/chat/completions", json=CHAT) as answer:
                assert answer.status == 401
            async with session.get("/health") as answer:
                assert answer.status == 200
        assert not place.backend.requests


async def test_a_key_in_the_header_of_anthropics_clients(keyed: tuple[SecuritySettings, str]) -> None:
    security, key = keyed
    body = {**CHAT, "max_tokens": 9, "metadata": {"user_id": "somebody-else"}}
    async with house(security) as place, aiohttp.ClientSession(place.url) as session:
        for headers, status in (
            ({"x-api-key": key}, 200),
            ({"x-api-key": "wrong"}, 401),
            ({"x-api-key": key, "Authorization": "Bearer wrong"}, 401),
            ({}, 401),
        ):
            async with session.post("/v1/messages", json=body, headers=headers) as answer:
                assert answer.status == status
                if status == 401:
                    assert (await answer.json())["error"]["type"] == "authentication_error"
        assert [request.tenant for request in place.backend.requests] == ["acme"]


async def test_a_response_is_its_tenants_alone(keyed: tuple[SecuritySettings, str], tmp_path: Path) -> None:
    security, key = keyed
    others, entry = make_key("other")
    add_to_file(tmp_path / "keys.yaml", entry)
    async with house(security) as place, aiohttp.ClientSession(place.url) as session:

        async def call(method: str, path: str, by: str, **body: Any) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {by}"}
            async with session.request(method, path, json=body or None, headers=headers) as answer:
                return answer.status, await answer.json()

        ask = {"model": "tiny-thinker", "input": "Hi", "user": "acme"}
        _, made = await call("POST", "/v1/responses", key, **ask)
        place.backend.script = script(admitted(), Stall())
        _, running = await call("POST", "/v1/responses", key, **ask, background=True)
        for response_id in (made["id"], running["id"]):
            path = f"/v1/responses/{response_id}"
            for method, each in (
                ("GET", path),
                ("GET", f"{path}?stream=true"),
                ("GET", f"{path}/input_items"),
                ("POST", f"{path}/cancel"),
                ("DELETE", path),
            ):
                assert (await call(method, each, others))[0] == 404, each
            assert (await call("POST", "/v1/responses", others, **ask, previous_response_id=response_id))[0] == 400
            assert (await call("GET", path, key))[1]["id"] == response_id
        assert (await call("DELETE", f"/v1/responses/{running['id']}", key))[0] == 200


async def test_with_a_key_all_answers_and_the_tenant_is_the_keys(keyed: tuple[SecuritySettings, str]) -> None:
    security, key = keyed
    async with house(security) as place:
        async with AsyncClient(place.grpc, credentials=Credentials(api_key=key)) as client:
            assert (await client.complete(prompt="Hi", tenant="somebody-else")).text
            assert await client.list_models()
            assert await client.get_status()
        async with aiohttp.ClientSession(place.url, headers={"Authorization": f"Bearer {key}"}) as session:
            for path in ("/v1/models", "/v1/status"):
                async with session.get(path) as answer:
                    assert answer.status == 200
            async with session.post("/v1/chat/completions", json=CHAT) as answer:
                assert answer.status == 200
        assert [request.tenant for request in place.backend.requests] == ["acme", "acme"]


async def test_a_client_without_a_key_gets_the_error_that_says_so(keyed: tuple[SecuritySettings, str]) -> None:
    async with house(keyed[0]) as place, AsyncClient(place.grpc) as client:
        with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
            await client.complete(prompt="Hi")


# --- tokens ---------------------------------------------------------------------------------------------------------


def jwt_settings(folder: Path) -> tuple[SecuritySettings, ed25519.Ed25519PrivateKey]:
    private = ed25519.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "jwt.pem").write_bytes(public)
    settings = {"algorithm": "EdDSA", "key_file": str(folder / "jwt.pem"), "issuer": "idp", "audience": "baton"}
    return SecuritySettings.model_validate({"jwt": settings}), private


def test_tokens_of_the_identity_provider_are_believed_and_no_others(tmp_path: Path) -> None:
    security, private = jwt_settings(tmp_path)
    authentication = Authentication(security)
    now = int(time.time())
    good: dict[str, Any] = {"iss": "idp", "aud": "baton", "exp": now + 600, "tenant": "acme"}

    def check(claims: dict[str, Any], key: Any = private, algorithm: str = "EdDSA") -> str:
        caller = authentication.check(f"Bearer {jwt.encode(claims, key, algorithm=algorithm)}")
        assert caller is not None
        return caller.tenant

    assert check(good) == "acme"
    bad_claims = [
        good | {"exp": now - 600},
        good | {"aud": "other"},
        good | {"iss": "other"},
        good | {"tenant": ""},
        good | {"tenant": 5},
        good | {"nbf": now + 600},
        {key: value for key, value in good.items() if key != "exp"},
        {key: value for key, value in good.items() if key != "tenant"},
    ]
    for claims in bad_claims:
        with pytest.raises(Unauthenticated):
            check(claims)
    with pytest.raises(Unauthenticated):
        check(good, ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(Unauthenticated):  # unsigned
        check(good, None, "none")
    with pytest.raises(Unauthenticated):  # the public key used as a shared secret
        forged = jwt.api_jws.PyJWS().encode(b"{}", b"x" * 32, algorithm="HS256")
        authentication.check(f"Bearer {forged}")
    for junk in ("", "a.b.c", "Bearer", "x" * 10_000, "\udcff"):
        with pytest.raises(Unauthenticated):
            authentication.check(f"Bearer {junk}")


def test_keys_and_tokens_side_by_side(tmp_path: Path, keyed: tuple[SecuritySettings, str]) -> None:
    with_jwt, private = jwt_settings(tmp_path)
    security = with_jwt.model_copy(update={"api_keys_file": keyed[0].api_keys_file})
    authentication = Authentication(security)
    token = jwt.encode(
        {"iss": "idp", "aud": "baton", "exp": int(time.time()) + 60, "tenant": "t"}, private, algorithm="EdDSA"
    )
    callers = [authentication.check(f"Bearer {credential}") for credential in (keyed[1], token)]
    assert [caller.tenant for caller in callers if caller] == ["acme", "t"]


def test_a_weak_shared_secret_or_a_wrong_key_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "weak").write_text("hunter2")
    for algorithm in ("HS256", "EdDSA", "RS256"):
        jwt_part = {"algorithm": algorithm, "key_file": str(tmp_path / "weak"), "issuer": "i", "audience": "a"}
        with pytest.raises(ConfigError) as refused:
            Authentication(SecuritySettings.model_validate({"jwt": jwt_part}))
        assert "hunter2" not in str(refused.value)


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_with_tls_on_plaintext_is_refused(tmp_path: Path, mutual: bool) -> None:
    authority = Authority(tmp_path)
    server, mine = authority.pair("server"), authority.pair("client")
    stranger = Authority(tmp_path / "other", "other").pair("stranger")
    tls = {"certificate_file": str(server.certificate), "private_key_file": str(server.key)}
    if mutual:
        tls["client_ca_file"] = str(authority.file)
    security = SecuritySettings.model_validate({"tls": tls})
    good = Credentials(
        ca_file=authority.file,
        certificate_file=mine.certificate if mutual else None,
        private_key_file=mine.key if mutual else None,
    )
    bad = [Credentials()]
    if mutual:
        bad += [
            Credentials(ca_file=authority.file),
            Credentials(ca_file=authority.file, certificate_file=stranger.certificate, private_key_file=stranger.key),
        ]
    else:
        bad.append(Credentials(ca_file=Authority(tmp_path / "third", "third").file))
    async with house(security) as place:
        async with AsyncClient(place.grpc, credentials=good) as client:
            assert (await client.complete(prompt="Hi")).text
        for credentials in bad:
            async with AsyncClient(place.grpc, credentials=credentials, deadline_s=5) as client:
                with pytest.raises(Exception, match=r".") as refused:
                    await client.list_models()
                assert type(refused.value).__name__ in ("NoReadyWorker", "DeadlineExceeded")
        assert len(place.backend.requests) == 1
        context = ssl.create_default_context(cafile=str(authority.file))
        if mutual:
            context.load_cert_chain(mine.certificate, mine.key)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{place.url}/health", ssl=context) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://127.0.0.1:{place.http_port}/health")
            if mutual:
                nobody = ssl.create_default_context(cafile=str(authority.file))
                with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                    await session.get(f"{place.url}/health", ssl=nobody)


@pytest.mark.parametrize("wrong", ["missing", "empty", "another key", "no PEM"])
async def test_a_bad_certificate_is_a_config_error(tmp_path: Path, wrong: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    key = {
        "missing": tmp_path / "nowhere",
        "empty": tmp_path / "empty",
        "another key": authority.pair("other").key,
        "no PEM": tmp_path / "junk",
    }[wrong]
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "junk").write_text("s3cret junk")
    tls = {"certificate_file": str(pair.certificate), "private_key_file": str(key)}
    authentication = Authentication(SecuritySettings.model_validate({"tls": tls}))
    with pytest.raises(ConfigError, match=r"security\.tls") as refused:
        await serve_grpc(FakeBackend(), SETTINGS, authentication)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"security\.tls"):
        authentication.ssl_context()


# --- limits of the listeners ----------------------------------------------------------------------------------------


async def test_headers_over_the_limit_are_refused() -> None:
    settings = SETTINGS.model_copy(update={"max_header_bytes": 2048})
    async with house(SecuritySettings(), settings) as place:
        async with grpc.aio.insecure_channel(place.grpc) as channel:
            call = channel.unary_unary("/baton.v1.Inference/ListModels")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"", metadata=(("x-large", "y" * 100_000),), timeout=10)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await call(b"", timeout=10)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{place.url}/health", headers={"X-Large": "y" * 4000}) as answer:
                assert answer.status == 400
            async with session.get(f"{place.url}/health") as answer:
                assert answer.status == 200


async def test_streams_of_one_connection_are_bounded() -> None:
    """The second stream waits for the first one's end; it is not served beside it."""
    settings = SETTINGS.model_copy(update={"max_streams_per_connection": 1})
    async with house(SecuritySettings(), settings) as place, AsyncClient(place.grpc) as client:
        first = client.watch_status(0.1)
        await anext(first)
        second = asyncio.create_task(client.list_models())
        await anext(first)
        await anext(first)
        assert not second.done()
        await first.aclose()
        assert await second


async def test_a_body_that_does_not_come_is_given_up() -> None:
    settings = SETTINGS.model_copy(update={"body_timeout_s": 0.2})
    async with house(SecuritySettings(), settings) as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.http_port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 20)
        assert b"did not come within" in answer
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost:"], ids=["nothing", "half a header"])
async def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    settings = SETTINGS.model_copy(update={"body_timeout_s": 0.2})
    async with house(SecuritySettings(), settings) as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.http_port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


def test_the_sweeper_leaves_busy_connections_alone() -> None:
    class Connection:
        transport = None
        closed = False

        def force_close(self) -> None:
            self.closed = True

    sweeper, busy, idle = IdleSweeper(10), Connection(), Connection()
    sweeper._busy[busy] = 1
    for now_s in (0, 5, 9.9):
        sweeper.sweep([busy, idle], now_s)
    assert not idle.closed
    sweeper.sweep([busy, idle], 10)
    assert idle.closed
    assert not busy.closed
    sweeper._busy.clear()
    sweeper.sweep([busy], 100)
    assert not busy.closed  # idle from here on
    sweeper.sweep([busy], 110)
    assert busy.closed


async def test_a_connection_with_short_requests_is_not_swept() -> None:
    """Found by the fuzzer: no sweep happened to see one of its requests."""
    settings = SETTINGS.model_copy(update={"body_timeout_s": 0.6})
    async with house(SecuritySettings(), settings) as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.http_port)
        for _ in range(20):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            await asyncio.sleep(0.1)
        writer.close()


async def test_a_reader_that_stops_reading_over_grpc_is_ended() -> None:
    settings = SETTINGS.model_copy(update={"slow_reader_timeout_s": 0.3})
    # Else gRPC widens its window to what the link carries, which on a fast machine is more than is sent here.
    fixed_window = [("grpc.http2.bdp_probe", 0)]
    async with (
        house(SecuritySettings(), settings) as place,
        grpc.aio.insecure_channel(place.grpc, options=fixed_window) as channel,
    ):
        place.backend.script = script(*[delta("x" * 50_000)] * 400)  # 20 MB, more than any buffer between holds
        call = channel.unary_stream(
            "/baton.v1.Inference/Generate", request_serializer=inference_pb2.GenerateRequest.SerializeToString
        )(inference_pb2.GenerateRequest(prompt="Hi"), timeout=60)
        await call.read()
        await asyncio.wait_for(place.backend.cancelled.wait(), 20)
        await asyncio.wait_for(place.backend.idle.wait(), 20)
        call.cancel()


async def test_a_reader_that_stops_reading_over_http_is_ended() -> None:
    settings = SETTINGS.model_copy(update={"slow_reader_timeout_s": 0.3})
    async with house(SecuritySettings(), settings) as place:
        place.backend.script = script(*[delta("x" * 50_000)] * 400)
        loop = asyncio.get_running_loop()
        body = b'{"model": "tiny-thinker", "prompt": "Hi", "stream": true}'
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", place.http_port))
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            await loop.sock_sendall(client, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.wait_for(place.backend.cancelled.wait(), 20)
            await asyncio.wait_for(place.backend.idle.wait(), 20)
        place.backend.script = reply()
        async with aiohttp.ClientSession() as session, session.get(f"{place.url}/health") as answer:
            assert answer.status == 200
