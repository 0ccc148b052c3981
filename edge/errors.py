"""What whoever typed the command is told."""


class EdgeError(Exception):
    """The work cannot be done as it was asked for; the message says why, and what to do."""
