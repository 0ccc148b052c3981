"""The product's rules and the queries they need. No HTTP here, and no torch: `service.networks` runs networks."""
