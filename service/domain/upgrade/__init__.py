"""Upgrades: planning, batches, catch-up, evaluation, cutover and rollback, and what an upgrade would take."""
