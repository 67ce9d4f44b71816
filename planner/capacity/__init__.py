"""Planning: how many workers, of which kind, at what cost."""
