"""The room for networks: encoders, transformations, decoding of images, and queries that share a run of an encoder.

Nothing else in `service/` imports `models`, but for `service.durable`, the door to files that are whole or not there.
"""
