"""The OpenAI interface over HTTP."""
