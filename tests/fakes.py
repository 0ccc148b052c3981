"""Small whole stand-ins, passed in where the real thing would be."""


class RecordingQueue:
    """A `service.queue.Sender` that keeps what it was asked to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[int, ...]]] = []

    def send(self, task_name: str, *arguments: int) -> None:
        self.sent.append((task_name, arguments))
