"""Galleries: their generations and current rows, items, and writes from images and from vectors."""
