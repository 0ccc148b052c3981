"""A network of several files as one artifact: an archive of ONNX and the files that hold its weights.

The archive is a zip without compression, so that it takes no more memory than its bytes say, and the same files make
the same bytes. Its first entry is the network.
"""

import io
import zipfile
from collections.abc import Mapping

from models.loaded_networks import ArtifactError

_COMMENT = b"gallery-upgrade: ONNX and its weights"
_MOST_FILES = 1_000


def pack_network(files: Mapping[str, bytes]) -> bytes:
    """Return one artifact of files under their names: one file as it is, several as an archive, of which one must be an
    ONNX network. Raises `ArtifactError`."""
    if len(files) == 1:
        return next(iter(files.values()))
    networks = [name for name in files if name.lower().endswith(".onnx")]
    if len(networks) != 1:
        raise ArtifactError(
            "Of several files one is an ONNX network, by the end of its name (.onnx), and the others its weights; these"
            f" are {', '.join(map(repr, files))}."
        )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in [*networks, *sorted(set(files) - set(networks))]:
            archive.writestr(zipfile.ZipInfo(name), files[name])
        archive.comment = _COMMENT
    return stream.getvalue()


def is_packed(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is one of `pack_network`."""
    return archive.comment == _COMMENT


def unpack_network(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return an ONNX network and the files beside it by their names; of what is no archive, `data` and none. Raises
    `ArtifactError`."""
    if not data.startswith(b"PK"):
        return data, {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if not entries or len(entries) > _MOST_FILES:
                raise ArtifactError(f"An archive of a network holds 1 to {_MOST_FILES} files.")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ArtifactError("The archive is compressed: upload its files as they are.")
            first, *others = entries
            return archive.read(first), {entry.filename: archive.read(entry) for entry in others}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError("The file is a damaged archive.") from error
