"""Runs the strategies of `orchestrator.policy.thinking` on live branches. Knows no gateway: that gives it branches."""
