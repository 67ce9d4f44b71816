"""How an engine's pool of KV blocks is cut up, and how many blocks a request takes: vLLM's rules for hybrid models.

All layers draw from one pool of blocks of one size. Layers of a kind are dealt into groups of equal size, each with a
block table of its own: a block holds ``block_tokens`` tokens of every layer of one group. A group of full attention
takes a block for each ``block_tokens`` tokens; one with a window only for the window; one with a state just one.
Source: ``vllm/v1/core/kv_cache_utils.py`` (``get_kv_cache_groups``), 0.32; the tests compare with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.model.model_spec import ModelSpec
from kv_transfer.blocks import kv_shards


@dataclass(frozen=True)
class KvGroups:
    """All groups of one kind of layer.

    Args:
        groups: How many, each with a block table of its own.
        layers: Layers of the kind.
        window_tokens: Tokens after which a block can be dropped; 0 for never.
        chunk_tokens: Tokens after which all blocks are dropped and a new chunk begins; 0 for never.
        state: One block per request, whatever its length.
    """

    groups: int
    layers: int
    window_tokens: int = 0
    chunk_tokens: int = 0
    state: bool = False

    def blocks(self, context_tokens: float, block_tokens: int, in_flight_tokens: int = 0, states: int = 1) -> float:
        """Blocks that one request of this length takes in all groups of the kind."""
        if self.state:
            return float(self.groups * states)
        whole = math.ceil(context_tokens / block_tokens)
        if self.window_tokens:
            kept = math.ceil(min(self.window_tokens - 1 + in_flight_tokens, context_tokens) / block_tokens) + 1
            whole = min(whole, kept)
        elif self.chunk_tokens:
            whole = min(whole, math.ceil((self.chunk_tokens + in_flight_tokens) / block_tokens))
        return float(self.groups * whole)


@dataclass(frozen=True)
class KvLayout:
    """The pool of one GPU.

    Args:
        block_tokens: Tokens of a block of full attention.
        block_bytes: Bytes of a block on one GPU.
        kinds: Groups by kind of layer.
        states: Blocks of state that a request keeps; 2 where states are kept for a prefix cache.
    """

    block_tokens: int
    block_bytes: int
    kinds: tuple[KvGroups, ...]
    states: int = 1

    @property
    def plain(self) -> bool:
        """One block table that grows with the context."""
        only = self.kinds[0]
        return len(self.kinds) == 1 and not (only.window_tokens or only.chunk_tokens or only.state)

    def blocks(self, context_tokens: float, in_flight_tokens: int = 0) -> float:
        """Blocks that one request of this length takes.

        Args:
            context_tokens: Its length.
            in_flight_tokens: Tokens of a prompt's piece under way, which windowed layers keep besides; 0 in decode.
        """
        return sum(kind.blocks(context_tokens, self.block_tokens, in_flight_tokens, self.states) for kind in self.kinds)

    def request_bytes(self, context_tokens: float) -> float:
        """Bytes that one request of this length holds on one GPU."""
        return self.blocks(context_tokens) * self.block_bytes

    def pool_blocks(self, budget_bytes: float) -> int:
        """Blocks that fit into a budget, less the one that vLLM keeps empty."""
        return max(0, int(budget_bytes // self.block_bytes) - 1)

    def capacity_tokens(self, budget_bytes: float, context_tokens: float) -> int:
        """Tokens held when requests of this length fill the pool."""
        return int(self.pool_blocks(budget_bytes) / self.blocks(context_tokens) * context_tokens)


def kv_layout(
    model: ModelSpec,
    tp: int = 1,
    *,
    block_size_tokens: int = 16,
    kv_dtype_bytes: float = 2.0,
    pp: int = 1,
    prefix_cache: bool = False,
) -> KvLayout:
    """The pool of each GPU of a worker.

    Args:
        model: Geometry.
        tp: GPUs over which heads are split.
        block_size_tokens: Tokens per block as asked; a model with states gets blocks large enough for one.
        kv_dtype_bytes: 2 for bf16, 1 for fp8.
        pp: Pipeline stages over which layers are split.
        prefix_cache: States are kept for reuse by equal prefixes.
    Raises:
        ConfigError: the block size is not positive.
    Example:
        >>> from cluster.model.known_models import known_model
        >>> layout = kv_layout(known_model("gpt-oss-120b"), block_size_tokens=32)
        >>> [(kind.groups, kind.layers) for kind in layout.kinds], layout.blocks(8192)
        ([(1, 18), (1, 18)], 261.0)
    """
    if block_size_tokens < 1:
        raise ConfigError(f"block_size_tokens={block_size_tokens}: expected >= 1")
    token_bytes = model.kv_values_per_token_layer * kv_dtype_bytes / kv_shards(model, tp)
    block_tokens, state = block_size_tokens, model.state
    page = token_bytes * block_tokens
    if state is not None:
        # The attention's page is made as large as a state, in whole steps of the block size.
        step = max(block_tokens, 128) if model.is_mla else block_tokens
        block_tokens = step * math.ceil(state.bytes_per_gpu(tp) / (step * token_bytes))
        block_tokens = max(block_tokens, block_size_tokens)
        page = token_bytes * block_tokens
    counts = [
        (model.full_attention_layers, {}),
        (model.sliding_layers, {"window_tokens": model.sliding_window_tokens}),
        (model.chunked_layers, {"chunk_tokens": model.chunk_tokens}),
        (state.layers if state is not None else 0, {"state": True}),
    ]
    present = [(layers, of) for layers, of in counts if layers]
    size = _group_size([layers for layers, _ in present])
    kinds, widest = [], 0
    for layers, of in present:
        groups = -(-layers // size)
        widest = max(widest, -(-layers // groups))
        kinds.append(KvGroups(groups, layers, **of))  # type: ignore[arg-type]
    index = model.index_layers * model.index_bytes_per_token_layer * block_tokens
    block_bytes = math.ceil((widest * page + index) / pp)
    return KvLayout(block_tokens, block_bytes, tuple(kinds), 2 if prefix_cache and state is not None else 1)


def _group_size(layers: list[int]) -> int:
    """Layers per group: those of the rarest kind, or of the commonest where that is less than half as many again."""
    fewest, most = min(layers), max(layers)
    return most if most < 1.5 * fewest else fewest
