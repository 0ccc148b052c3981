"""Nearest-neighbour search: the `VectorIndex` protocol, FAISS behind it, index files, and the replicas that follow a
gallery. Knows FAISS and numpy; no HTTP, no SQL, no torch."""
