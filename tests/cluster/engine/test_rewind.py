"""A seeded request draws the same whether its prompt is computed in one step or in several."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")


class Runner:
    """What vLLM's model runner does with generators, in small."""

    def __init__(self, mask: list[bool]) -> None:
        self.discard_request_mask = SimpleNamespace(np=np.array(mask))
        generators = {at: torch.Generator().manual_seed(7) for at in range(2)}
        self.input_batch = SimpleNamespace(num_reqs=2, generators=generators)

    def _sample(self) -> list[float]:
        return [torch.rand(1, generator=each).item() for each in self.input_batch.generators.values()]

    def _bookkeeping_sync(self) -> Any:
        for at in np.nonzero(self.discard_request_mask.np)[0]:
            generator = self.input_batch.generators.get(int(at))
            if generator is not None:
                generator.set_offset(generator.get_offset() - 4)
        return len(self.input_batch.generators)


def test_the_draw_of_a_dropped_token_is_given_back() -> None:
    from cluster.engine.vllm_worker import rewind_generators

    with pytest.raises(RuntimeError, match="offset"):
        Runner([True, False])._bookkeeping_sync()
    rewind_generators(Runner)
    rewind_generators(Runner)
    runner = Runner([True, False])
    (first, other), kept = runner._sample(), runner._bookkeeping_sync()
    assert kept == 1
    assert len(runner.input_batch.generators) == 2
    runner.discard_request_mask.np[0] = False
    assert runner._sample() == [
        first,
        pytest.approx(torch.rand(2, generator=torch.Generator().manual_seed(7))[1].item()),
    ]
    assert first == other
