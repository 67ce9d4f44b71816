"""What callers see: gRPC and HTTP servers, the client, and the error table."""
