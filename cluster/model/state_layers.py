"""Layers that keep a state of fixed size per request in place of keys and values per token.

State-space layers (Mamba), linear attention and short convolutions. Shapes are those of the engines' own caches: a
window of convolution inputs and a recurrent matrix per head.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError


@dataclass(frozen=True)
class StateLayers:
    """All state layers of a model; they are equal to each other.

    Args:
        kind: Name, for messages.
        layers: How many.
        params: Weights of one layer's mixer.
        conv_width: Channels of the convolution's window, before tensor-parallel sharding; 0 for none.
        conv_tokens: Tokens in that window.
        state_heads: Heads of the recurrent state; 0 for none.
        state_width: Values of the state per head.
        state_dtype_bytes: Of the recurrent state; the convolution's window is in bf16.
        groups: Groups whose projections lie in the convolution's window; past their number they are repeated.
        group_width: Channels of one group there, keys and queries together.

    Example:
        >>> StateLayers("short convolution", 10, 12_582_912, conv_width=2048, conv_tokens=2).bytes_per_gpu(2)
        4096
    """

    kind: str
    layers: int
    params: int
    conv_width: int = 0
    conv_tokens: int = 0
    state_heads: int = 0
    state_width: int = 0
    state_dtype_bytes: float = 2.0
    groups: int = 0
    group_width: int = 0

    def __post_init__(self) -> None:
        if self.layers < 1 or self.params < 1:
            raise ConfigError(f"model.state.layers={self.layers}, params={self.params}: expected >= 1")
        if self.conv_width * self.conv_tokens + self.state_heads * self.state_width < 1:
            raise ConfigError("model.state: expected a convolution window or a recurrent state")

    def bytes_per_gpu(self, tp: int) -> int:
        """Bytes that one request keeps in one layer on each of ``tp`` GPUs."""
        width = self.conv_width
        if self.groups % tp:
            # Every GPU needs a whole group: past their number each is repeated.
            width += (tp - self.groups) * self.group_width
        conv = width * self.conv_tokens * 2 / tp
        return int(conv + self.state_heads * self.state_width * self.state_dtype_bytes / tp)

    def scan_flops(self, tp: int) -> float:
        """Floating-point operations of one token in one layer's recurrence: decay, update and read-out."""
        return 6.0 * self.state_heads * self.state_width / tp + 2.0 * self.conv_width * (self.conv_tokens + 1) / tp
