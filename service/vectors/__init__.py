"""How vectors move between PostgreSQL and numpy: binary COPY, and nothing else. No rules about galleries here."""
