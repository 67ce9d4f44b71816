"""What callers meet: gRPC, HTTP, the Python client and the command line."""
