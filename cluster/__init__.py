"""What exists: errors, configuration, model and hardware facts, topology, workers, engines, and the Ray runtime."""
