"""Sending a folder of images to a gallery, such that the gallery has what the folder has, whatever happens meanwhile.

An item's id is its file's path below the folder, with `/` between its parts, in Unicode's NFC. A file is sent unless
the ledger says that its content was.
"""

import csv
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from gallery_upgrade.api import requests
from gallery_upgrade.core.batches import BatchSize, batches
from gallery_upgrade.core.calls import File
from gallery_upgrade.core.names import printable
from gallery_upgrade.errors import WouldDeleteMost
from gallery_upgrade.ledger import Entry, Ledger
from gallery_upgrade.listing import MISSING, Found, check_still, listed
from gallery_upgrade.problems import NoImageAccepted
from gallery_upgrade.progress import Show

if TYPE_CHECKING:
    from gallery_upgrade.client import Client

_MOST_BYTES = 32 * 2**20
_DELETED_AT_ONCE = 10_000
_TICK_NS = 2 * 10**9

# What is said of a file's item: label, metadata, image_uri.
Describe = Callable[[Path], Mapping[str, Any]]


@dataclass
class Uploaded:
    """How many files were `sent`, of these `created`, `replaced` and `rejected`; `unchanged` were not sent; `missing`
    vanished before they were read; and `deleted` are items whose files are gone. `reasons` has every file that was not
    taken: rejected, of runs before too, missing, not to be read, or with a name that is no id."""

    sent: int = 0
    created: int = 0
    replaced: int = 0
    rejected: int = 0
    unchanged: int = 0
    missing: int = 0
    deleted: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


class Interrupted(KeyboardInterrupt):
    """An upload was interrupted; `uploaded` is what had become of it."""

    def __init__(self, uploaded: Uploaded) -> None:
        self.uploaded = uploaded
        sent = f"Interrupted after {uploaded.sent} files were sent."
        super().__init__(f"{sent} The same upload again goes on from there.")


@dataclass(frozen=True)
class _Read:
    """A file to send, with the bytes that it had."""

    found: Found
    content: bytes
    digest: str


@dataclass(frozen=True)
class FolderUpload:
    """One upload. `threads` requests are under way at once; `describe` says something of each file.

    With `delete_missing` items are deleted whose files were sent once and are gone before it begins; with `delete_most`
    even if that are more than half of them. A file that vanishes meanwhile, or that cannot be looked at, is not gone.
    """

    client: "Client"
    gallery: str
    folder: Path
    ledger: Ledger
    threads: int
    describe: Describe | None
    delete_missing: bool
    delete_most: bool
    show: Show | None
    stopped: Event = field(default_factory=Event, init=False)

    def run(self) -> Uploaded:
        """Send what the ledger does not have, and return what became of it.

        What was answered for is in the ledger, whatever is raised, and the next run goes on from there:
        NotADirectoryError where the folder is not there, or no more; `WouldDeleteMost`, before anything is sent;
        OSError, `Problem`, `ServiceAway`; `Interrupted`.
        """
        uploaded = Uploaded()
        try:
            self._mirror(uploaded)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(uploaded) from interrupt
        return uploaded

    def _mirror(self, uploaded: Uploaded) -> None:
        listed_ns = time.time_ns()
        known = self.ledger.entries()
        listing = listed(self.folder)
        gone = sorted(item_id for item_id in known if listing.is_gone(item_id)) if self.delete_missing else []
        if 2 * len(gone) > len(known) and not self.delete_most:
            raise WouldDeleteMost(
                f"Of {len(known)} files that were sent from {printable(str(self.folder))}, {len(gone)} are gone."
                " Nothing was sent or deleted: is it the right folder, and mounted? To delete so many items takes"
                " delete_most (--delete-most)."
            )

        found = list(listing.found.values())
        uploaded.reasons, uploaded.missing = listing.reasons, listing.missing
        changed = [file for file in found if _differs(file, known.get(file.id))]
        uploaded.unchanged = len(found) - len(changed)
        for file in found:
            entry = known.get(file.id)
            if entry is not None and entry.reason is not None:
                uploaded.reasons[file.id] = entry.reason

        self._send_all(changed, known, uploaded, listed_ns)
        if gone:
            check_still(self.folder)
            uploaded.deleted = self._delete(gone)

    def _send_all(self, files: list[Found], known: Mapping[str, Entry], uploaded: Uploaded, listed_ns: int) -> None:
        size = BatchSize()
        under_way: set[Future[list[_Outcome]]] = set()
        self._tell(uploaded, len(files))
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for batch in batches(self._reads(files, known, uploaded), size, _MOST_BYTES):
                    self.ledger.record(Entry(read.found.id, read.found.size, 0, "", None) for read in batch)
                    under_way.add(pool.submit(self._send, batch, size))
                    while len(under_way) >= self.threads:
                        done, rest = wait(under_way, return_when=FIRST_COMPLETED)
                        self._record([outcome for future in done for outcome in future.result()], uploaded, listed_ns)
                        under_way = rest
                        self._tell(uploaded, len(files))
            finally:
                # What is under way is waited for, but not tried again, and what was answered is kept, though another
                # request has failed or somebody has interrupted.
                failed = sys.exc_info()[0] is not None
                if failed:
                    self.stopped.set()
                for future in under_way if failed else ():
                    future.cancel()
                wait(under_way)
                ended = [future for future in under_way if not future.cancelled()]
                answered = [future for future in ended if future.exception() is None]
                self._record([outcome for future in answered for outcome in future.result()], uploaded, listed_ns)
            for future in ended:
                future.result()
        self._tell(uploaded, len(files))

    def _reads(self, files: list[Found], known: Mapping[str, Entry], uploaded: Uploaded) -> Iterator[tuple[_Read, int]]:
        """Give the files whose content is not the one that was sent, with their sizes."""
        for file in files:
            try:
                content = file.path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                check_still(self.folder)
                uploaded.missing += 1
                uploaded.reasons[file.id] = MISSING
                continue
            except OSError as error:
                uploaded.reasons[file.id] = f"It cannot be read: {error.strerror}."
                continue
            digest = hashlib.sha256(content).hexdigest()
            entry = known.get(file.id)
            if entry is not None and entry.digest == digest:
                self.ledger.record([Entry(file.id, file.size, file.changed_ns, digest, entry.reason)])
                uploaded.unchanged += 1
            else:
                yield _Read(file, content, digest), len(content)

    def _send(self, batch: list[_Read], size: BatchSize) -> list["_Outcome"]:
        """Post a batch, and return what became of each of its files."""
        files = [File(read.found.id, read.content) for read in batch]
        items = [{"id": read.found.id, **self._said(read.found.path)} for read in batch]
        began = time.monotonic()
        try:
            call = requests.post_images(name=self.gallery, files=files, items=items)
            results = self.client.perform(call, sleep=self._sleep).results
        except NoImageAccepted as problem:
            pairs = zip(batch, problem.errors, strict=True)
            return [_Outcome(read, "rejected", str(error["detail"])) for read, error in pairs]
        size.learn(len(batch), time.monotonic() - began)
        return [_Outcome(read, of.status, of.error) for read, of in zip(batch, results, strict=True)]

    def _sleep(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise CancelledError

    def _record(self, outcomes: list["_Outcome"], uploaded: Uploaded, listed_ns: int) -> None:
        entries = []
        for outcome in outcomes:
            found = outcome.read.found
            reason = None
            uploaded.sent += 1
            if outcome.status == "created":
                uploaded.created += 1
            elif outcome.status == "replaced":
                uploaded.replaced += 1
            else:
                uploaded.rejected += 1
                reason = outcome.error or "rejected"
                uploaded.reasons[found.id] = reason
            if reason is None:
                uploaded.reasons.pop(found.id, None)
            # A file that changed just now may change again within the same tick of the file system's clock.
            changed_ns = found.changed_ns if found.changed_ns < listed_ns - _TICK_NS else 0
            entries.append(Entry(found.id, found.size, changed_ns, outcome.read.digest, reason))
        self.ledger.record(entries)

    def _said(self, path: Path) -> Mapping[str, Any]:
        return {} if self.describe is None else self.describe(path)

    def _delete(self, ids: list[str]) -> int:
        """Delete items whose files are gone, and return how many there were."""
        deleted = 0
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            part = ids[start : start + _DELETED_AT_ONCE]
            deleted += self.client.api.delete_items(name=self.gallery, ids=part).deleted
            self.ledger.forget(part)
        return deleted

    def _tell(self, uploaded: Uploaded, total: int) -> None:
        if self.show is not None:
            self.show({"uploading": {"done": uploaded.sent, "total": total}})


@dataclass(frozen=True)
class _Outcome:
    """What the service said of a file."""

    read: _Read
    status: str
    error: str | None


def write_rejected(path: Path, reasons: Mapping[str, str]) -> None:
    """Write `id` and `reason` of every file that was not taken as CSV, in UTF-8; where there is none, only over a file
    that is there."""
    if not reasons and not path.exists():
        return
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "reason"])
        writer.writerows(sorted(reasons.items()))


def _differs(file: Found, entry: Entry | None) -> bool:
    return entry is None or (file.size, file.changed_ns) != (entry.size, entry.changed_ns)
