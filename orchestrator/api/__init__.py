"""Old names of `interface.client`, kept for one version."""
