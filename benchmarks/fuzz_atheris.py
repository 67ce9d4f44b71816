"""The parsers, fuzzed by coverage: python benchmarks/fuzz_atheris.py spec|ticket|body|request -runs=100000

Needs `pip install atheris` (Linux, Python 3.11 or 3.12). libFuzzer's own options follow the target. A fault leaves a
crash file and a non-zero status.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["cluster.spec", "kv_transfer.ticket", "interface", "orchestrator.request"]):
    from benchmarks import fuzz, fuzz_cases


def _seeds(target: str) -> list[bytes]:
    rng = random.Random(0)
    match target:
        case "ticket":
            return [json.dumps(fuzz_cases.GOOD_PARAMS).encode()]
        case "spec":
            return [fuzz_cases.SPEC.encode()]
        case "body":
            return [fuzz_cases.body(rng, "reasoner")[1] for _ in range(20)]
        case _:
            return [fuzz_cases.message(rng) for _ in range(20)]


def main() -> None:
    """Entry point."""
    target = sys.argv.pop(1)
    corpus = Path(f"fuzz-corpus-{target}")
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(_seeds(target)):
        (corpus / f"good-{number}").write_bytes(data)
    atheris.Setup([*sys.argv, "-max_len=4096", str(corpus)], lambda data: fuzz.one_pure(target, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
