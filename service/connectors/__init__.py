"""Galleries that live in another store: reading, writing beside the old, and switching, one module per store."""
