"""Deciding what runs where, and seeing to it: policies, request lifecycle, gateway, controller, node."""
