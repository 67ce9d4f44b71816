"""Speculative decoding as a stated assumption: tokens proposed, and the share of them that is accepted."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.model.model_spec import ModelSpec


@dataclass(frozen=True)
class Speculation:
    """What an engine proposes ahead of the model, and what comes of it.

    Args:
        tokens: Tokens proposed in each step.
        acceptance: Probability that a proposed token is accepted, given that those before it were.
        mtp: The model's own MTP layer proposes; else n-grams of the text so far, which cost no GPU time.

    Example:
        >>> round(Speculation(tokens=1, acceptance=0.85).tokens_per_step, 2)
        1.85
    """

    tokens: int
    acceptance: float
    mtp: bool = True

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.acceptance <= 1:
            raise ConfigError(
                f"engine.speculative: tokens={self.tokens}, acceptance={self.acceptance}: expected >= 1 and 0 to 1"
            )

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step yields on average: ``1 + a + ... + a**tokens``."""
        return sum(self.acceptance**i for i in range(self.tokens + 1))

    def check(self, model: ModelSpec) -> None:
        """Refuse a model without the layer that is to propose.

        Raises:
            ConfigError: it has none.
        """
        if self.mtp and not model.mtp_layers:
            raise ConfigError(
                f"engine.speculative.method=mtp: {model.name} has no MTP layer (num_nextn_predict_layers); use ngram"
            )
