"""Load generator for OpenAI HTTP and Baton gRPC endpoints, and what it measured."""
