"""transformers without torch: tokenisers and chat templates need none, and it takes 3 s and 330 MiB of each gateway."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def torch_hidden() -> Iterator[None]:
    """Have what is imported meanwhile take this process for one without torch; for processes that compute no model.

    transformers asks once, when it is imported, and imports torch with its tokenisers. Later imports find torch again:
    vLLM's parsers load all the same. Where torch or transformers are there already, nothing is hidden.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    # It would advise to install torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules["torch"] = None  # type: ignore[assignment]  # what Python itself has for a module that is not to be found
    try:
        yield
    finally:
        del sys.modules["torch"]
        if import_utils := sys.modules.get("transformers.utils.import_utils"):
            import_utils.is_torch_available.cache_clear()
