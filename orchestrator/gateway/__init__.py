"""The gateway: queues, places and runs requests."""
