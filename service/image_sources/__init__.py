"""Where images are kept that are not sent to the service: which of these places it may read, and reading them.

`source.ImageSource` is the way in. `locations` decides what a URI may reach; `local`, `web` and `remote` read files,
http(s) and what else fsspec knows, each within a time and a size; `read_ahead` reads several at once.
"""
