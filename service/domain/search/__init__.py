"""Answering queries: search by image, by vectors and by items, and its filters."""
