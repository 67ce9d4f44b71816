"""The decisions run in virtual time."""
