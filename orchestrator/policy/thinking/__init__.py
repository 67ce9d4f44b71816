"""Several traces for one question: how many, when to stop, which answer. Pure; gateways and the simulator run it."""
