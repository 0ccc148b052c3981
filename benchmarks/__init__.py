"""Measurements of the budgets of docs/architecture.md: one script each, ratios within one run; never in the tests."""
