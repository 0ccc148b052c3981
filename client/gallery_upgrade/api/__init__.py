"""The API, operation by operation. All but `answer` and `operation` is written by `make client`."""
