"""Files on a local disk that a crash leaves as they were, or new and whole: the service's door to `models.durable`."""

from models.durable import Step, file_sha256, sync_folder, write_atomically

__all__ = ["Step", "file_sha256", "sync_folder", "write_atomically"]
