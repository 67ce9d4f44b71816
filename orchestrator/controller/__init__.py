"""The controller: starts, pairs, checks, drains and ends workers."""
