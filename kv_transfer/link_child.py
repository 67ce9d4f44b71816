"""One end of a link probe, in a process of its own: ``python -m kv_transfer.link_child``.

A process of its own because UCX reads its environment once, when the library loads, and because a native call that
hangs can then be ended. The request comes as one JSON line on stdin, answers go as JSON lines to stdout. When stdin
closes the process ends, so nothing outlives a parent that was killed.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import json
import os
import sys
import threading
import time
from typing import Any, TextIO

import numpy as np

from cluster.engine.nixl_progress import let_progress_thread_sleep
from cluster.errors import ServingError, TransferBroken, TransferTimeout
from kv_transfer import link_channel

PATTERN_PERIOD = 251
"""A prime, so that a read from a wrong offset shows in the bytes."""


class Buffer:
    """Memory of one end: numpy on CPU, a torch tensor on CUDA."""

    def __init__(self, size_bytes: int, memory: str, device: int) -> None:
        self.size_bytes, self.device = size_bytes, device
        self.kind = "VRAM" if memory == "cuda" else "DRAM"
        if memory == "cuda":
            import torch

            self._torch = torch.zeros(size_bytes, dtype=torch.uint8, device=f"cuda:{device}")
            self.address = int(self._torch.data_ptr())
        else:
            self._torch = None
            self.array = np.zeros(size_bytes, dtype=np.uint8)
            self.address = int(self.array.ctypes.data)

    def touch(self) -> None:
        """Have the kernel give every page. A read into new ones costs 15 µs a page: 0.24 GiB/s in place of 7.7."""
        if self._torch is None:
            self.array.fill(255)

    def fill(self) -> None:
        """Write the pattern."""
        pattern = np.resize(np.arange(PATTERN_PERIOD, dtype=np.uint8), self.size_bytes)
        if self._torch is not None:
            import torch

            self._torch.copy_(torch.from_numpy(pattern))
            torch.cuda.synchronize(self.device)
        else:
            np.copyto(self.array, pattern)

    def holds_pattern(self, size_bytes: int) -> bool:
        """Whether the first ``size_bytes`` are the pattern."""
        data = self._torch[:size_bytes].cpu().numpy() if self._torch is not None else self.array[:size_bytes]
        step = PATTERN_PERIOD << 16
        expected = np.resize(np.arange(PATTERN_PERIOD, dtype=np.uint8), min(step, size_bytes))
        return all(
            bool(np.array_equal(data[at : at + step], expected[: len(data[at : at + step])]))
            for at in range(0, size_bytes, step)
        )

    def copy_s(self, size_bytes: int, scratch: Any) -> float:
        """Seconds one plain copy of ``size_bytes`` within this process's memory takes."""
        if self._torch is not None:
            import torch

            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            scratch[:size_bytes].copy_(self._torch[:size_bytes])
            torch.cuda.synchronize(self.device)
            return time.perf_counter() - start
        start = time.perf_counter()
        np.copyto(scratch[:size_bytes], self.array[:size_bytes])
        return time.perf_counter() - start

    def scratch(self) -> Any:
        """Memory of the same size and kind to copy to."""
        return self._torch.clone() if self._torch is not None else self.array.copy()


def _agent(name: str, buffer: Buffer) -> tuple[Any, Any]:
    from nixl._api import nixl_agent, nixl_agent_config

    let_progress_thread_sleep()
    # As vLLM's connector makes its agent: four worker threads, so that lanes and progress are the same.
    try:
        agent = nixl_agent(name, nixl_agent_config(num_threads=4, backends=["UCX"]))
    except Exception as error:
        raise TransferBroken(f"NIXL's UCX backend does not start with UCX_TLS={os.environ.get('UCX_TLS')}") from error
    region = [(buffer.address, buffer.size_bytes, buffer.device, "")]
    return agent, agent.register_memory(region, mem_type=buffer.kind)


def serve(request: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """The end that is read: registers memory, sends its address, keeps it until the client says bye."""
    deadline_s = time.monotonic() + request["timeout_s"]
    server = link_channel.listen(request["host"])
    try:
        buffer = Buffer(request["max_bytes"], request["memory"], request["device"])
        buffer.fill()
        agent, registration = _agent(f"probe-server-{os.getpid()}", buffer)
        print(json.dumps({"port": server.getsockname()[1]}), file=out, flush=True)
        channel = link_channel.accept(server, timeout_s=request["timeout_s"], deadline_s=deadline_s)
    finally:
        server.close()
    try:
        hello = channel.receive()
        channel.send(
            {
                "metadata": base64.b64encode(agent.get_agent_metadata()).decode(),
                "address": buffer.address,
                "bytes": buffer.size_bytes,
                "device": buffer.device,
                "kind": buffer.kind,
            }
        )
        channel.receive()
    finally:
        channel.close()
        agent.deregister_memory(registration)
    return {"served": hello.get("name", "")}


def measure(request: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """The end that reads: times every size, and a plain copy beside the largest."""
    deadline_s = time.monotonic() + request["timeout_s"]
    channel = link_channel.connect(
        request["host"], request["port"], timeout_s=request["connect_timeout_s"], deadline_s=deadline_s
    )
    sizes = sorted(request["sizes_bytes"])
    buffer = Buffer(sizes[-1], request["memory"], request["device"])
    buffer.touch()
    agent, registration = _agent(f"probe-client-{os.getpid()}", buffer)
    try:
        channel.send({"name": f"probe-client-{os.getpid()}"})
        peer = channel.receive()
        if peer["bytes"] < sizes[-1]:
            raise TransferBroken(f"the peer offers {peer['bytes']} bytes, less than the {sizes[-1]} to be read")
        remote = agent.add_remote_agent(base64.b64decode(peer["metadata"]))

        cursor = 0

        def read_s(size: int) -> float:
            # Each read goes to the next place in the buffer, as KV blocks do, or small ones would time a CPU cache.
            nonlocal cursor
            cursor = cursor + size if cursor + 2 * size <= sizes[-1] else 0
            return _read_s(agent, remote, buffer, peer, cursor, size, deadline_s)

        start = time.perf_counter()
        read_s(sizes[0])
        answer: dict[str, Any] = {"handshake_s": time.perf_counter() - start, "reads": [], "copies_s": []}
        scratch = buffer.scratch()
        for size in sizes:
            read_s(size)  # warm-up: registration caches, first use of the protocol for this size
            repetitions = request["repetitions"] * (4 if size <= 1 << 20 else 1)
            if size == sizes[-1]:
                buffer.copy_s(size, scratch)
            for _ in range(repetitions):
                answer["reads"].append([size, read_s(size)])
                if size == sizes[-1]:
                    # In turn with the reads, so that what else the machine does hits both alike.
                    answer["copies_s"].append(buffer.copy_s(size, scratch))
        answer["copy_bytes"] = sizes[-1]
        answer["intact"] = buffer.holds_pattern(sizes[-1])
        channel.send({"bye": True})
    finally:
        channel.close()
        agent.deregister_memory(registration)
    return answer


def _read_s(
    agent: Any, remote: str, buffer: Buffer, peer: dict[str, Any], offset: int, size: int, deadline_s: float
) -> float:
    local = agent.get_xfer_descs([(buffer.address + offset, size, buffer.device)], mem_type=buffer.kind)
    far = agent.get_xfer_descs([(peer["address"] + offset, size, peer["device"])], mem_type=peer["kind"])
    handle = agent.initialize_xfer("READ", local, far, remote)
    start = time.perf_counter()
    state = agent.transfer(handle)
    while state == "PROC":
        if time.monotonic() > deadline_s:
            raise TransferTimeout(f"a read of {size} bytes did not end in time")
        state = agent.check_xfer_state(handle)
    elapsed_s = time.perf_counter() - start
    agent.release_xfer_handle(handle)
    if state != "DONE":
        raise TransferBroken(f"NIXL reports state {state} for a read of {size} bytes")
    return elapsed_s


def main() -> None:
    """Run the request on stdin; an error becomes the last line of the answer, and exit code 1."""
    # NIXL and UCX may write to descriptor 1; answers keep a descriptor of their own.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())

    def follow_parent() -> None:
        sys.stdin.read()
        os._exit(3)

    threading.Thread(target=follow_parent, daemon=True).start()
    code = 0
    try:
        # Agent and memory go when the function returns, so UCX takes its segments back before the exit below.
        answer = {"serve": serve, "measure": measure}[request["do"]](request, out)
        print(json.dumps(answer), file=out, flush=True)
    except ServingError as error:
        print(json.dumps({"error": error.message, "kind": type(error).__name__}), file=out, flush=True)
        code = 1
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}", "kind": ""}), file=out, flush=True)
        code = 1
    gc.collect()
    ctypes.CDLL(None).fflush(None)  # UCX logs through C's stdio
    # The interpreter's own shutdown could wait for ever on a thread inside the library.
    os._exit(code)


if __name__ == "__main__":
    main()
