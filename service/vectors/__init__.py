"""Rows of vectors as numpy arrays: from and to PostgreSQL by binary COPY, and from tables that a user sends. No rules
about galleries here."""
