"""What a cluster is asked to be: its spec."""
