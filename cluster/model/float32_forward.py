"""A plain forward pass of a model in float32 by transformers: no paging, no batching, no kernel of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Float32Model:
    """The model of a folder, on the CPU.

    Example:
        >>> from pathlib import Path
        >>> model = Float32Model(Path("models/reasoner"))
        >>> steps = model.greedy([20, 30, 40], max_tokens=2, top=3)
        >>> [len(rows) for _, rows in steps]
        [3, 3]
    """

    def __init__(self, folder: Path, *, dtype: str = "float32", trust_remote_code: bool = False) -> None:
        import torch
        import transformers

        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        ).eval()

    def greedy(
        self, token_ids: Sequence[int], *, max_tokens: int, top: int
    ) -> list[tuple[int, list[tuple[int, float]]]]:
        """Most likely next tokens, one after another; with each the ``top`` log-probabilities. Nothing is cached."""
        torch, ids, steps = self._torch, list(token_ids), []
        with torch.inference_mode():
            for _ in range(max_tokens):
                logits = self._model(torch.tensor([ids]), use_cache=False).logits[0, -1]
                values, tokens = torch.log_softmax(logits.float(), dim=-1).topk(top)
                rows = list(zip(tokens.tolist(), values.tolist(), strict=True))
                steps.append((rows[0][0], rows))
                ids.append(rows[0][0])
        return steps
