"""Indexes of generations: the engine that holds them, their builds, when one is due, and what is removed."""
