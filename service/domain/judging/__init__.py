"""Judging an upgrade before it may go live: what is enough, as rules without a database."""
