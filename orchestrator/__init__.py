"""Deciding what runs where: policies, lifecycle, live gateway and controller, simulator, planner, APIs, CLI."""
