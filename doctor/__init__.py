"""What diagnoses a machine and its links."""
