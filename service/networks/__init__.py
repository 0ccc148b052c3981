"""The room for networks, the only one in `service/` that imports `models`: encoders, transformations, and queries that
share a run of an encoder."""
