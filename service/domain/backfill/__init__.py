"""Backfills: which items are worth encoding again, in which order, and doing it."""
