"""The memory-bound pool: decode legs and their loop (`decode_legs`), engine profile, time model and worker."""
