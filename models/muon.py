"""The optimizer of the small reasoner's weight matrices."""

from __future__ import annotations

import math

import torch


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Momentum made orthogonal by Newton-Schulz, for the weight matrices; it needs fewer updates than AdamW.

    ``torch.optim.Muon`` rounds to bfloat16 on the way, which CPUs without bfloat16 units do slowly; this one stays in
    float32 and takes matrices of one shape together. Source: Jordan et al. 2024, "Muon"; the update is scaled to the
    root mean square of AdamW's, ``0.2 * sqrt(max(rows, columns))``, as in arXiv:2502.16982.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step(self) -> None:
        """Update every matrix once."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                rows, columns = matrix.shape
                shapes.setdefault((rows, columns), []).append(matrix)
            for matrices in shapes.values():
                self._update(matrices, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        directions = []
        with torch.no_grad():
            for matrix in matrices:
                buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - momentum)
                directions.append(matrix.grad.lerp(buffer, momentum))
            updates = _orthogonal(torch.stack(directions)) * (0.2 * math.sqrt(max(matrices[0].shape)))
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-lr)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, roughly: five quintic Newton-Schulz steps."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
