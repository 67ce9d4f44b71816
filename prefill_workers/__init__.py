"""The compute-bound pool: prefill legs, engine profile, time model and worker."""
