"""What a call of the API is, and what becomes of it, without doing any I/O: the two clients send and wait."""
