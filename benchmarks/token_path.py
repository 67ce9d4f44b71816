"""CPU time of a token in a gateway: from a worker's step message to the response that the front would send.

Links are replaced by ones that put messages in by hand, so neither gRPC nor a worker is measured: what remains is the
gateway's own work. The best of some rounds is printed, since machines are shared. To compare two trees, run it in both,
by turns::

    python -m benchmarks.token_path --streams 64 --tokens 400
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1 import inference_pb2 as pb
from cluster.spec.config import parse
from orchestrator.gateway import fleet
from orchestrator.policy.phases import Phase
from tests.fakes.live_cluster import gateway_of
from tests.fakes.tokenizer import MARKERS, front

SPEC = """
model: {path: m, served_name: fake, max_model_len_tokens: 65536, reasoning: {}}
pools: {colocated: {replicas: 1}}
gateway: {max_queued_requests: 5000}
"""


class Link:
    """Stands for a worker's link: legs start at once, and say what `step` has them say."""

    made: list[Link] = []  # noqa: RUF012

    def __init__(self, worker_id: str, address: str, *, on_load: Callable[[Any], None], **_: Any) -> None:
        self.worker_id, self.last_event_s = worker_id, time.monotonic()
        self.report = on_load
        self.legs: dict[str, Callable[[Any], None]] = {}
        self.on_token: dict[int, Callable[[int], None]] = {}
        Link.made.append(self)

    def submit(
        self, message: worker_pb2.SubmitLeg, handler: Callable[[Any], None], on_token: Callable[[int], None]
    ) -> None:
        """Start a leg."""
        self.legs[message.leg_id] = handler
        self.on_token[len(self.legs)] = on_token

    def abort(self, leg_id: str) -> None:
        """Stop a leg."""
        self.legs.pop(leg_id, None)

    def silence(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def step(self, number: int) -> None:
        """One step of the engine, over the wire's own encoding: a token for each leg."""
        self.last_event_s = time.monotonic()
        token_ids = [97 + number % 26] * len(self.legs)
        message = worker_pb2.WorkerEvents(step=worker_pb2.Step(leg_numbers=self.on_token, token_ids=token_ids))
        step = worker_pb2.WorkerEvents.FromString(message.SerializeToString()).step
        for leg_number, token_id in zip(step.leg_numbers[:], step.token_ids[:], strict=True):
            self.on_token[leg_number](token_id)


async def token_us(streams: int, tokens: int, sink: bool) -> float:
    """CPU microseconds a token in one round."""
    Link.made.clear()
    gateway = gateway_of(parse(SPEC), front(markers=MARKERS, max_model_len_tokens=65536))
    member = registry_pb2.Member(
        worker_id="colocated-0", role="colocated", state="ready", address="-", incarnation="i", total_blocks=10**6,
        block_size_tokens=32, cpus=1,
    )  # fmt: skip
    gateway.update_members(registry_pb2.WatchMembersResponse(members=[member]))
    (link,) = Link.made
    link.report(worker_pb2.WorkerLoad(worker_id="colocated-0", incarnation="i", total_blocks=10**6))
    sent = [0]

    class Sink:
        """Takes text and drops it: what a protocol makes of it is not measured here."""

        ready = True

        def take(self, choice: int, phase: Phase, text: str, token_ids: Sequence[int]) -> None:
            sent[0] += len(token_ids)

    async def read() -> None:
        sampling = pb.Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        request = pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[65] * 64), sampling=sampling)
        async for response in gateway.generate(request, Sink() if sink else None):
            response.SerializeToString()
            sent[0] += len(response.delta.token_ids)

    readers = [asyncio.create_task(read()) for _ in range(streams)]
    while len(link.legs) < streams:  # noqa: ASYNC110
        await asyncio.sleep(0)
    gc.collect()
    began_s = time.process_time()
    for number in range(tokens):
        link.step(number)
        while sent[0] < streams * (number + 1):  # noqa: ASYNC110
            await asyncio.sleep(0)
    taken_s = time.process_time() - began_s
    await asyncio.gather(*readers)
    await gateway.close()
    return 1e6 * taken_s / (streams * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-sink", action="store_true", help="by the iterator alone, as slow readers get it")
    arguments = parser.parse_args()
    fleet.WorkerLink = Link  # type: ignore[misc, assignment]
    taken = sorted(
        asyncio.run(token_us(arguments.streams, arguments.tokens, not arguments.no_sink))
        for _ in range(arguments.rounds)
    )
    print(f"{arguments.streams} streams: best {taken[0]:.2f} us a token, median {taken[len(taken) // 2]:.2f}")


if __name__ == "__main__":
    main()
