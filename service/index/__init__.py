"""Nearest-neighbour search: the `VectorIndex` protocol, FAISS and Milvus behind it, index files, and the replicas that
follow galleries. Knows FAISS, pymilvus and numpy; no HTTP, no SQL, no torch."""
