"""Erasing as a worker does, and looking for what should be gone: in every table and every file."""

from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from service.db import Database
from workers.app import WorkerParts
from workers.erasing import advance_an_erasure

# Every table's columns, and whether one holds bytes: as text, they would be in hexadecimal form.
_COLUMNS = """
SELECT c.table_name, c.column_name, c.data_type = 'bytea'
FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE' ORDER BY 1, 2
"""


def ask_for_erasure(client: httpx.Client, **wanted: Any) -> int:
    answer = client.post("/v1/erasures", json=wanted)
    assert answer.status_code == 202, answer.text
    job_id: int = answer.json()["id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    return job_id


def erase(client: httpx.Client, worker: WorkerParts, **wanted: Any) -> dict[str, Any]:
    """Ask for an erasure, let the worker do it, and return its job."""
    job_id = ask_for_erasure(client, **wanted)
    while advance_an_erasure(worker, job_id):
        pass
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return job


def places_of(job: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Return what was found, removed and is left in each place."""
    return {each["place"]: (each["found"], each["removed"], each["remains"]) for each in job["result"]["places"]}


def found_in(database: Database, data: Path, needle: bytes) -> set[str]:
    """Return the columns and the files that hold some bytes, or the text or the hexadecimal form that they are."""
    found = set()
    with database.session_scope() as session:
        for table, column, is_bytes in session.execute(text(_COLUMNS)).all():
            holds = f'position(:bytes IN "{column}") > 0' if is_bytes else f'strpos("{column}"::text, :text) > 0'
            if b"\0" in needle and not is_bytes:  # no text has it
                continue
            parameters = {"bytes": needle} if is_bytes else {"text": needle.decode(errors="replace")}
            if session.scalar(text(f'SELECT count(*) FROM "{table}" WHERE {holds}'), parameters):
                found.add(f"{table}.{column}")
    files = [path for path in data.rglob("*") if path.is_file()]
    return found | {str(path.relative_to(data)) for path in files if needle in path.read_bytes()}
