"""The demonstration: real images, trained networks, a running service, and what an upgrade is worth. It talks to the
service over HTTP only."""
