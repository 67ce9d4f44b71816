"""The parsers, fuzzed by coverage: python benchmarks/fuzz_atheris.py spec|ticket|body -runs=100000

Needs `pip install atheris` (Linux, Python 3.11 or 3.12). libFuzzer's own options follow the target. A fault leaves a
crash file and a non-zero status.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["cluster.config", "kv_transfer.ticket", "orchestrator.api"]):
    from benchmarks import fuzz, fuzz_cases


def main() -> None:
    """Entry point."""
    target = sys.argv.pop(1)
    corpus = Path(f"fuzz-corpus-{target}")
    corpus.mkdir(exist_ok=True)
    (corpus / "good").write_text(json.dumps(fuzz_cases.GOOD_PARAMS) if target == "ticket" else fuzz_cases.SPEC)
    atheris.Setup([*sys.argv, "-max_len=4096", str(corpus)], lambda data: fuzz.one_pure(target, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
