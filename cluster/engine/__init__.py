"""The engine that a worker runs: its protocol and vLLM behind it."""
