"""The faults. Each is injected while the load runs, takes what it does back, and says in words what it did."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable

import grpc
import psutil

from baton.v1 import cluster_pb2, inference_pb2_grpc
from baton.v1 import inference_pb2 as pb
from benchmarks.fault_cluster import FaultCluster

STOPPED_S = 20.0
CUT_S = 5.0
SLOW_S = 15.0
SLOW_DELAY_S = 0.05
FLOOD_CLIENTS = 1000
"""More than the gateways' queue and the engines hold together, so that some are refused."""
LONG_REQUESTS = 96
READER_PAUSE_S = 10.0

Fault = Callable[[FaultCluster, random.Random], Awaitable[str]]


def _ready(cluster: FaultCluster, *roles: str) -> list[str]:
    return sorted(key for key, each in cluster.members.items() if each.state == "ready" and each.role in roles)


def _core(pid: int) -> psutil.Process:
    """The engine core of a worker: its largest child."""
    children = psutil.Process(pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def _victim(cluster: FaultCluster, rng: random.Random, *roles: str) -> str:
    return rng.choice(_ready(cluster, *(roles or ("prefill", "decode"))))


async def kill_worker(cluster: FaultCluster, rng: random.Random, *roles: str) -> str:
    """Kill -9 of a worker's process."""
    victim = _victim(cluster, rng, *roles)
    psutil.Process(cluster.members[victim].pid).kill()
    return f"kill -9 of {victim}"


async def kill_core(cluster: FaultCluster, rng: random.Random, *roles: str) -> str:
    """Kill -9 of a worker's engine core; the worker's process lives."""
    victim = _victim(cluster, rng, *roles)
    _core(cluster.members[victim].pid).kill()
    return f"kill -9 of the engine core of {victim}"


async def term_worker(cluster: FaultCluster, rng: random.Random) -> str:
    """SIGTERM to a decode worker, which then drains."""
    victim = _victim(cluster, rng, "decode")
    psutil.Process(cluster.members[victim].pid).terminate()
    return f"SIGTERM to {victim}"


async def stop_worker(cluster: FaultCluster, rng: random.Random) -> str:
    """SIGSTOP a worker's process for 20 s; by then it may have been replaced."""
    victim = _victim(cluster, rng)
    process = psutil.Process(cluster.members[victim].pid)
    return await _stopped(process, victim)


async def stop_core(cluster: FaultCluster, rng: random.Random) -> str:
    """SIGSTOP an engine core for 20 s: the worker answers, and its engine does not step."""
    victim = _victim(cluster, rng)
    return await _stopped(_core(cluster.members[victim].pid), f"the engine core of {victim}")


async def _stopped(process: psutil.Process, name: str) -> str:
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)
    return f"SIGSTOP of {name} for {STOPPED_S:g} s"


async def cut_link(cluster: FaultCluster, rng: random.Random) -> str:
    """Cut the network between the gateways and a worker for some seconds."""
    victim = _victim(cluster, rng)
    relay = cluster.relay(victim)
    relay.cut = True
    relay.sever()
    await asyncio.sleep(CUT_S)
    relay.cut = False
    return f"link to {victim} cut for {CUT_S:g} s"


async def slow_link(cluster: FaultCluster, rng: random.Random) -> str:
    """Delay everything between the gateways and a worker."""
    victim = _victim(cluster, rng)
    relay = cluster.relay(victim)
    relay.delay_s = SLOW_DELAY_S
    await asyncio.sleep(SLOW_S)
    relay.delay_s = 0.0
    return f"link to {victim} slowed by {SLOW_DELAY_S * 1000:g} ms each way for {SLOW_S:g} s"


async def kill_gateway(cluster: FaultCluster, rng: random.Random) -> str:
    """Kill -9 of one of the gateways, and start another."""
    gateway = rng.choice(cluster.gateways)
    gateway.process.kill()
    await asyncio.to_thread(gateway.process.wait, 10)
    cluster.gateways.remove(gateway)
    await gateway.client.close()
    await cluster.add_gateway()
    return "kill -9 of a gateway"


async def _ends(address: str, requests: int, *, prompt_tokens: int, max_tokens: int, rng: random.Random) -> str:
    """Send requests all at once, each on a connection of its own; how many ended in which way."""
    request = pb.GenerateRequest(
        prompt_token_ids=pb.TokenIds(ids=[rng.randrange(5, 60) for _ in range(prompt_tokens)]),
        sampling=pb.Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
    )
    ends: dict[str, int] = {}

    async def one() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                async for _ in inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=240):
                    pass
                end = "served"
            except grpc.aio.AioRpcError as error:
                end = error.code().name
        ends[end] = ends.get(end, 0) + 1

    await asyncio.gather(*(one() for _ in range(requests)))
    return ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))


async def stop_gateway(cluster: FaultCluster, rng: random.Random) -> str:
    """SIGSTOP a gateway for 20 s: what its workers said meanwhile, it has not read."""
    gateway = rng.choice(cluster.gateways)
    return await _stopped(psutil.Process(gateway.process.pid), "a gateway")


async def flood(cluster: FaultCluster, rng: random.Random) -> str:
    """Many callers at once: the queue runs full, and each is answered or refused."""
    ends = await _ends(rng.choice(cluster.gateways).address, FLOOD_CLIENTS, prompt_tokens=64, max_tokens=16, rng=rng)
    return f"flood of {FLOOD_CLIENTS} clients: {ends}"


async def exhaust_kv(cluster: FaultCluster, rng: random.Random) -> str:
    """More long traces than the decode pool holds KV for."""
    fullest = 0.0

    async def sample() -> None:
        nonlocal fullest
        while True:
            status = await cluster.gateways[0].client.get_status()
            decode = [each for each in status.workers if each.role == cluster_pb2.ROLE_DECODE]
            fullest = max(fullest, *(each.used_blocks / each.total_blocks for each in decode))
            await asyncio.sleep(0.1)

    sampling = asyncio.create_task(sample())
    address = rng.choice(cluster.gateways).address
    ends = await _ends(address, LONG_REQUESTS, prompt_tokens=600, max_tokens=400, rng=rng)
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    return f"{LONG_REQUESTS} traces of 1,000 tokens at once: {ends}; a decode worker's KV at most {fullest:.0%} full"


async def slow_readers(cluster: FaultCluster, rng: random.Random) -> str:
    """Callers that read one message and then pause, then read on or hang up."""
    address = rng.choice(cluster.gateways).address
    request = pb.GenerateRequest(
        prompt_token_ids=pb.TokenIds(ids=[rng.randrange(5, 60) for _ in range(64)]),
        sampling=pb.Sampling(temperature=0.0, max_tokens=500, ignore_eos=True),
    )

    async def one(reads_on: bool) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=120)
            await call.read()
            await asyncio.sleep(READER_PAUSE_S)
            while reads_on and await call.read() is not grpc.aio.EOF:
                pass
            call.cancel()

    await asyncio.gather(*(one(index % 2 == 0) for index in range(8)), return_exceptions=True)
    return f"8 readers that pause for {READER_PAUSE_S:g} s, half of which hang up"


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What an HTTP/2 client begins with (RFC 9113, section 3.4)."""


async def garbage(cluster: FaultCluster, rng: random.Random) -> str:
    """Malformed and truncated HTTP/2 frames, protobuf messages and HTTP bodies."""
    gateway = rng.choice(cluster.gateways)
    host, port = gateway.address.rsplit(":", 1)
    valid = pb.GenerateRequest(prompt="x", sampling=pb.Sampling(max_tokens=1)).SerializeToString()
    frames = [
        rng.randbytes(200),
        PREFACE + rng.randbytes(300),
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\xff\xff\xff\x01\x05\x00\x00\x00\x01" + rng.randbytes(50),
        PREFACE[: rng.randrange(1, len(PREFACE))],
    ]
    bodies = [
        b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"messages": [',
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n" + rng.randbytes(12),
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/9.9\r\n\r\n" + rng.randbytes(40),
    ]
    for target, payload in [*((int(port), each) for each in frames), *((gateway.http_port, each) for each in bodies)]:
        _, writer = await asyncio.open_connection(host, target)
        writer.write(payload)
        with contextlib.suppress(OSError):
            await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
    codes = []
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        for message in (rng.randbytes(64), valid[:-1], b"\x0a\xff\xff\xff\xff\x0f"):
            call = channel.unary_stream("/baton.v1.Inference/Generate")(message, timeout=20)
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)
    return f"{len(frames)} bad connections, {len(bodies)} bad HTTP bodies, bad messages answered {', '.join(codes)}"


async def _of(fault: Callable[..., Awaitable[str]], role: str, cluster: FaultCluster, rng: random.Random) -> str:
    return await fault(cluster, rng, role)


FAULTS: dict[str, Fault] = {
    "kill-prefill": lambda cluster, rng: _of(kill_worker, "prefill", cluster, rng),
    "kill-decode": lambda cluster, rng: _of(kill_worker, "decode", cluster, rng),
    "kill-prefill-core": lambda cluster, rng: _of(kill_core, "prefill", cluster, rng),
    "kill-decode-core": lambda cluster, rng: _of(kill_core, "decode", cluster, rng),
    "kill-gateway": kill_gateway,
    "term-decode": term_worker,
    "stop-gateway": stop_gateway,
    "stop-worker": stop_worker,
    "stop-core": stop_core,
    "cut-link": cut_link,
    "slow-link": slow_link,
    "flood": flood,
    "exhausted-kv": exhaust_kv,
    "slow-readers": slow_readers,
    "garbage": garbage,
}
KILLS = ("kill-prefill", "kill-decode", "kill-prefill-core", "kill-decode-core")
REPLACING = (*KILLS, "term-decode")
"""Faults whose victim comes back as a new incarnation."""
