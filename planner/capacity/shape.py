"""How one worker is spread over GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.hardware.catalogue import GpuSpec


@dataclass(frozen=True, order=True)
class Shape:
    """GPUs of one worker.

    Args:
        tp: GPUs over which matrices are split.
        pp: Pipeline stages over which layers are split.
        dp: Ranks with attention of their own, which share the experts placed whole on all of them.

    Example:
        >>> Shape(tp=8, pp=2).gpus, str(Shape(1, 1, 32)), str(Shape(4))
        (16, '32 (TP1 DP32 EP32)', '4')
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.tp * self.pp * self.dp

    def nodes(self, gpu: GpuSpec) -> int:
        """Nodes (or racks of one scale-up link) that a worker of this kind of GPU spans."""
        return -(-self.gpus // gpu.scaleup_gpus)

    def __str__(self) -> str:
        if self.pp == self.dp == 1:
            return str(self.tp)
        stages = f" PP{self.pp}" if self.pp > 1 else ""
        ranks = f" DP{self.dp} EP{self.tp * self.dp}" if self.dp > 1 else ""
        return f"{self.gpus} (TP{self.tp}{stages}{ranks})"
