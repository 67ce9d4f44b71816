"""The wire contract: message classes and service stubs generated from ``proto/`` by ``make proto``."""
