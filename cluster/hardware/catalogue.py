"""Hardware catalogue: what one GPU can do and what it costs an hour.

The rows are in ``gpus.csv``; each names where its limits and its price come from, and the month of the price.
Prices are survey figures and go stale: a plan's own ``hardware:`` block overrides them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from cluster.errors import ConfigError
from cluster.model.precision import Precision

_CATALOGUE = Path(__file__).parent / "gpus.csv"
GIB = 1024**3


@dataclass(frozen=True)
class GpuSpec:
    """One kind of GPU.

    Args:
        name: Catalogue key.
        memory_bytes: What a process can see (torch's total), a little under the label.
        hbm_bytes_per_s: Peak memory bandwidth.
        bf16_flops: Dense bf16 peak, multiply and add counted as two.
        fp8_flops: Dense fp8 peak; 0 where the tensor cores have no fp8.
        scaleup_bytes_per_s: NVLink or its like, one direction; 0 for none.
        pcie_bytes_per_s: PCIe, one direction.
        nic_bytes_per_s: This GPU's share of the node's network, one direction.
        power_w: Board power limit.
        price_usd_h: On-demand price an hour, middle of the survey.
        price_low_usd_h: Cheapest seen.
        price_high_usd_h: Dearest seen.
        spec_source: Where the limits come from.
        price_source: Where the price comes from.
        price_date: Month of the price.
        fp4_flops: Dense fp4 peak; 0 where the tensor cores have no fp4.
        scaleup_gpus: GPUs joined by the scale-up link: those of a node, or of a rack (NVL72).

    Example:
        >>> gpu("H100-SXM").hbm_bytes_per_s
        3350000000000.0
    """

    name: str
    memory_bytes: float
    hbm_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    scaleup_bytes_per_s: float
    pcie_bytes_per_s: float
    nic_bytes_per_s: float
    power_w: float
    price_usd_h: float
    price_low_usd_h: float
    price_high_usd_h: float
    spec_source: str = ""
    price_source: str = ""
    price_date: str = ""
    fp4_flops: float = 0.0
    scaleup_gpus: int = 8

    def __post_init__(self) -> None:
        for field in ("memory_bytes", "hbm_bytes_per_s", "bf16_flops", "pcie_bytes_per_s", "nic_bytes_per_s"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"hardware.{self.name}.{field}={getattr(self, field)}: expected > 0")
        for field in ("fp8_flops", "scaleup_bytes_per_s", "price_usd_h", "price_low_usd_h", "price_high_usd_h"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"hardware.{self.name}.{field}={getattr(self, field)}: expected >= 0")

    @property
    def peer_bytes_per_s(self) -> float:
        """Fastest link between two GPUs of one node, one direction: scale-up link, else PCIe."""
        return self.scaleup_bytes_per_s or self.pcie_bytes_per_s

    @property
    def priced(self) -> bool:
        """An hour's price was surveyed."""
        return self.price_usd_h > 0

    def flops(self, fp8: bool) -> float:
        """Dense peak for a matrix multiplication; fp8 falls back to bf16 where the GPU has none."""
        return self.fp8_flops if fp8 and self.fp8_flops > 0 else self.bf16_flops

    def rate(self, precision: Precision) -> float:
        """Dense peak with weights so stored: in the narrowest type that these tensor cores multiply.

        NVFP4 runs in fp4 where there is any; MXFP4 weights are multiplied with activations in fp8 there. Where there is
        no fp4, 4-bit weights are widened to bf16.
        """
        if precision.computes_in_fp4 and self.fp4_flops > 0:
            return self.fp4_flops
        fp8 = precision.computes_in_fp8 or (precision is Precision.MXFP4 and self.fp4_flops > 0)
        return self.flops(fp8)

    def link_bytes_per_s(self, gpus: int) -> float:
        """Link by which each of ``gpus`` GPUs reaches the others, one direction: the network past one node."""
        return self.peer_bytes_per_s if gpus <= self.scaleup_gpus else self.nic_bytes_per_s

    def with_overrides(self, **values: float) -> GpuSpec:
        """The same GPU with some figures replaced, for instance ``price_usd_h``.

        Raises:
            ConfigError: no such figure.
        """
        known = {field.name for field in fields(self)} - {"name", "spec_source", "price_source", "price_date"}
        for key in values:
            if key not in known:
                raise ConfigError(f"hardware.{self.name}.{key}: unknown; expected one of {', '.join(sorted(known))}")
        changed: Mapping[str, float] = values
        return replace(self, **changed)  # type: ignore[arg-type]


@cache
def catalogue() -> dict[str, GpuSpec]:
    """All GPUs of ``gpus.csv``, by name."""
    with _CATALOGUE.open(newline="") as file:
        return {row["gpu"]: _from_row(row) for row in csv.DictReader(file)}


def gpu(name: str) -> GpuSpec:
    """One GPU of the catalogue.

    Raises:
        ConfigError: unknown name; the text lists the known ones.
    """
    found = catalogue().get(name)
    if found is None:
        raise ConfigError(f"gpu={name!r}: unknown; expected one of {', '.join(catalogue())}")
    return found


def _from_row(row: Mapping[str, str]) -> GpuSpec:
    number = {key: float(value) for key, value in row.items() if key[:5] not in ("gpu", "spec_", "price")}
    return GpuSpec(
        name=row["gpu"],
        memory_bytes=number["mem_gib"] * GIB,
        hbm_bytes_per_s=number["hbm_tb_s"] * 1e12,
        bf16_flops=number["bf16_dense_tflops"] * 1e12,
        fp8_flops=number["fp8_dense_tflops"] * 1e12,
        scaleup_bytes_per_s=number["scaleup_gb_s_per_dir"] * 1e9,
        pcie_bytes_per_s=number["pcie_gb_s_per_dir"] * 1e9,
        nic_bytes_per_s=number["nic_gb_s"] * 1e9,
        fp4_flops=number["fp4_dense_tflops"] * 1e12,
        scaleup_gpus=int(number["scaleup_gpus"]),
        power_w=number["tdp_w"],
        price_usd_h=float(row["price_mid_usd_h"]),
        price_low_usd_h=float(row["price_low_usd_h"]),
        price_high_usd_h=float(row["price_high_usd_h"]),
        spec_source=row["spec_source"],
        price_source=row["price_source"],
        price_date=row["price_date"],
    )
