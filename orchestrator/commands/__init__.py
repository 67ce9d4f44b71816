"""Bodies of the `baton` commands: what they print, and how."""
