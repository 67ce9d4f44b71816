"""Time to move KV blocks over one link: a start-up time, a time per descriptor, and bytes over bandwidth."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cluster.errors import ConfigError
from cluster.hardware.catalogue import GpuSpec


class Link(StrEnum):
    """How two workers are joined."""

    NVLINK = "nvlink"
    RDMA = "rdma"
    TCP = "tcp"
    SHARED_MEMORY = "shared_memory"
    INFINITE = "infinite"


@dataclass(frozen=True)
class TransferCost:
    """Cost of one handoff over one link.

    Args:
        bytes_per_s: Sustained rate of the link for this worker.
        setup_s: Read request, agreement and notification, whatever the size.
        descriptor_s: Per descriptor (one contiguous piece of memory).
        bytes_per_descriptor: Size of such a piece; 0 leaves the term out.

    Example:
        >>> from cluster.hardware.catalogue import gpu
        >>> round(TransferCost.over(Link.RDMA, gpu("H100-SXM"), gpus=1).transfer_s(2**30), 4)
        0.0221
    """

    bytes_per_s: float
    setup_s: float = 0.38e-3
    descriptor_s: float = 1.4e-6
    bytes_per_descriptor: float = 0.0
    _per_byte_s: float = field(init=False, repr=False, compare=False, default=0.0)

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0:
            raise ConfigError(f"link.bytes_per_s={self.bytes_per_s}: expected > 0")
        if self.setup_s < 0 or self.descriptor_s < 0 or self.bytes_per_descriptor < 0:
            raise ConfigError("link.setup_s, descriptor_s and bytes_per_descriptor: expected >= 0")
        per_byte = 1.0 / self.bytes_per_s
        if self.bytes_per_descriptor > 0:
            per_byte += self.descriptor_s / self.bytes_per_descriptor
        object.__setattr__(self, "_per_byte_s", per_byte)

    @classmethod
    def over(cls, link: Link | str, gpu: GpuSpec, gpus: int = 1, bytes_per_descriptor: float = 0.0) -> TransferCost:
        """The cost over ``link`` between workers of ``gpus`` GPUs each; every GPU uses its own lane.

        NIXL moves 49.5 of 50 GB/s on a 400 Gb/s NIC and was fitted by ``0.38 ms + bytes / 146 GB/s`` on 8x200 Gb/s
        RoCE (73 % of the wire), so RDMA counts 99 % of one NIC and at most 73 % of several; NVLink was reported at
        about 80 % of peak for large copies; TCP at 8 Gb/s a stream; shared memory at 3.7 GiB/s between processes.

        Raises:
            ConfigError: unknown link, or NVLink asked of a GPU that has none.
        """
        try:
            link = Link(link)
        except ValueError as error:
            raise ConfigError(f"link={link!r}: expected one of {', '.join(each.value for each in Link)}") from error
        if link is Link.INFINITE:
            return cls(bytes_per_s=float("inf"), setup_s=0.0, descriptor_s=0.0)
        if link is Link.NVLINK:
            if gpu.scaleup_bytes_per_s <= 0:
                raise ConfigError(f"link=nvlink: {gpu.name} has no scale-up link")
            return cls(0.8 * gpu.scaleup_bytes_per_s * gpus, 0.1e-3, bytes_per_descriptor=bytes_per_descriptor)
        if link is Link.RDMA:
            share = 0.99 if gpus == 1 else 0.73
            return cls(share * gpu.nic_bytes_per_s * gpus, bytes_per_descriptor=bytes_per_descriptor)
        if link is Link.TCP:
            return cls(min(1e9, gpu.nic_bytes_per_s), 1e-3)
        return cls(3.7 * 1024**3, 0.5e-3)

    def transfer_s(self, kv_bytes: int) -> float:
        """Seconds to move ``kv_bytes`` with the link to itself."""
        return self.setup_s + kv_bytes * self._per_byte_s
