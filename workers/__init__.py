"""What every worker does, and how it is called."""
