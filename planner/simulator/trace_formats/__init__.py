"""Readers of public trace formats and of load generators' results, one file a format."""
