"""The Kubernetes side: pods, nodes, leases, tunnels."""
