"""Where the networks of strangers run: each in a child process, within the settings' limits of memory and time."""

from models.confined_networks import Confinement
from models.loaded_networks import NetworkStopped as NetworkStopped  # for who runs networks
from models.onnx_sessions import OpenSession
from service.settings import Settings


def where_networks_run(settings: Settings) -> OpenSession:
    """Return how ONNX networks are opened in this process."""
    seconds = settings.network_seconds
    return Confinement(settings.network_memory_bytes, seconds, seconds).open
