"""Deciding what runs where: policies, request lifecycle, live gateway and controller, simulator, planner, APIs and the CLI."""
