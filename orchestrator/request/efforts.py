"""The names of thinking efforts, for all that reads or writes one."""

from __future__ import annotations

from baton.v1 import inference_pb2

EFFORTS: dict[str, inference_pb2.Effort] = {
    "none": inference_pb2.EFFORT_NONE,
    "minimal": inference_pb2.EFFORT_MINIMAL,
    "low": inference_pb2.EFFORT_LOW,
    "medium": inference_pb2.EFFORT_MEDIUM,
    "high": inference_pb2.EFFORT_HIGH,
    "xhigh": inference_pb2.EFFORT_XHIGH,
    "max": inference_pb2.EFFORT_MAX,
}
"""Every effort, the least first: the numbers on the wire are in another order."""
EFFORT_NAMES: dict[int, str] = {effort: name for name, effort in EFFORTS.items()}
