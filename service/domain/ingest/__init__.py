"""Ingest by reference: jobs that read the images of a list from where they are kept, encode and write them."""
