"""Model versions and transformations: registering, finding and deleting them."""
