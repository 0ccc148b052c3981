"""Erasure: jobs that remove what the service has of items, galleries or tenants, and prove what is left."""
