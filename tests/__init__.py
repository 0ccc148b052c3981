"""Tests: unit (no server), integration (PostgreSQL), end_to_end (HTTP and a worker process), chaos (kills)."""
