"""Chat completions and completions, as OpenAI and vLLM have them."""
