"""The product's rules and the queries they need. No HTTP here, and networks only through callables passed in."""
