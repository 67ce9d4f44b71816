"""Decisions as pure functions: routing, admission, forecasting, scaling."""
