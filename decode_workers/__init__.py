"""The memory-bound pool: engine profile, time model and worker."""
