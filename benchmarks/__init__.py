"""Measurements of the budgets (DESIGN section 11): one script each, ratios within one run; never part of the tests."""
