"""The compute-bound pool: engine profile, time model and worker."""
