"""The Celery application and its thin tasks: open a session, call the domain, call a network, call the domain."""
