"""`python -m tests.chaos.storm --seed 1 --runs 36 --items 200000`: the runs, and their table in Markdown."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.chaos.storm.processes import KINDS
from tests.chaos.storm.run import Options, Outcome, Storm
from tests.real_servers import RealServers, missing_program

_COUNTED = ("writes", "writes left open", "searches", "backfilled", "retries of failed upgrades")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the next has the next one")
    parser.add_argument("--runs", type=int, default=36)
    parser.add_argument("--items", type=int, default=200_000, help="imported before the first run")
    parser.add_argument("--writes", type=int, default=24_000, help="acknowledged in each run, at least")
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds to the next kill, on average")
    parser.add_argument("--graph-every", type=int, default=12, help="one run in so many builds HNSW, the others not")
    parser.add_argument("--folder", type=Path, help="kept afterwards; else a temporary one")
    arguments = parser.parse_args()
    reason = missing_program()
    if reason is not None:
        print(f"the storm needs real servers: {reason}")
        return 2
    torch.set_num_threads(1)
    options = Options(
        arguments.items,
        arguments.writes,
        kill_every_seconds=arguments.kill_every,
        graph_every=arguments.graph_every,
    )
    with tempfile.TemporaryDirectory(prefix="storm-", ignore_cleanup_errors=True) as temporary:
        folder = arguments.folder or Path(temporary)
        with RealServers(folder / "servers") as servers:
            return storm(Storm(servers, folder, options), range(arguments.seed, arguments.seed + arguments.runs))


def storm(storm: Storm, seeds: Sequence[int]) -> int:
    """Fill the base, run every seed and print the table; return 1 if anything is wrong."""
    started = time.monotonic()
    filled = storm.fill()["writes"]
    print(f"{filled} items imported in {time.monotonic() - started:.0f} s", flush=True)
    outcomes = []
    for seed in seeds:
        outcome = storm.run(seed)
        outcomes.append(outcome)
        print(_row(str(seed), outcome.plan, [outcome]), flush=True)
    print()
    print(table(outcomes))
    writes = filled + sum(outcome.counts["writes"] for outcome in outcomes)
    print(f"\n{writes} acknowledged writes with the {filled} of the base, {time.monotonic() - started:.0f} s in all")
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the summary in Markdown: one row per plan, and the sum."""
    head = ["plan", "runs", *(f"kills: {kind}" for kind in KINDS), *_COUNTED, "violations", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for plan in dict.fromkeys(outcome.plan for outcome in outcomes):
        chosen = [outcome for outcome in outcomes if outcome.plan == plan]
        lines.append(_row(plan, str(len(chosen)), chosen))
    lines.append(_row("**all**", str(len(outcomes)), outcomes))
    return "\n".join(lines)


def _row(first: str, second: str, outcomes: Sequence[Outcome]) -> str:
    cells = [first, second, *(str(sum(outcome.kills[kind] for outcome in outcomes)) for kind in KINDS)]
    cells += [str(sum(outcome.counts[what] for outcome in outcomes)) for what in _COUNTED]
    cells.append(str(sum(len(outcome.violations) for outcome in outcomes)))
    cells.append(f"{sum(outcome.seconds for outcome in outcomes):.0f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
