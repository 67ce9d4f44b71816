"""Moving the KV cache: block layout, handoff tickets, transports, the vLLM connector and the link probe."""
