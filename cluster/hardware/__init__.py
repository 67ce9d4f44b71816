"""What GPUs are and how fast they compute."""
