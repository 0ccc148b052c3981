"""The HTTP service and the gallery itself: rows, rules, index and API. Never imports `workers`."""
