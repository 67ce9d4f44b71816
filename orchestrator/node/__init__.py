"""What runs beside a node's workers in Kubernetes: health and probes."""
