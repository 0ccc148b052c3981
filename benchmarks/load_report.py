"""What came of a constant load through an upgrade: which phase a query was due in, whether its answer was of one
generation, and the page and plot of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.constant_rate import Reply
from benchmarks.processes import MemoryTrace
from benchmarks.setting import Vectors, markdown

QUIET = "quiet"
WARM_UP = "warm-up"  # not judged
TRANSFORMING = "transforming"
WHOLE = "whole upgrade"  # from transforming to the end
_LEAST_QUERIES = 100  # of fewer, a p99 is the longest
_MOST_P99 = 2.0  # times the quiet one
_TOLERANCE = 1e-3  # of a distance, for float32; another space's are far off
_BIN_SECONDS = 2.0
_MIB = 2**20
_COLUMNS = (
    "phase",
    "seconds",
    "queries",
    "failures",
    "refused by name",
    "mixed answers",
    "nearest found",
    "p50 ms",
    "p99 ms",
    "p99 / quiet",
    "API MiB",
    "worker MiB",
)


@dataclass(frozen=True)
class Space:
    """One generation: rows (N, D) float32 of items `item-0` to `item-<N-1>`, queries (P, D) float32, and the (P,) rows
    that are nearest to them."""

    version: str
    generation: int
    rows: Vectors
    queries: Vectors
    nearest: NDArray[np.int64]

    def has(self, reply: Reply) -> bool:
        """Return whether an answer is this generation's by name, and every distance in it by its rows."""
        if (reply.version, reply.generation) != (self.version, self.generation):
            return False
        if reply.asked is None:  # an image: its distances cannot be told from here
            return True
        if reply.asked != self.version:
            return False
        differences = self.rows[_positions(reply)] - self.queries[reply.probe]
        true = np.linalg.norm(differences.astype(np.float64), axis=1)
        return bool(np.allclose(reply.distances, true, rtol=_TOLERANCE, atol=0))

    def found_nearest(self, reply: Reply) -> bool:
        return len(reply.ids) > 0 and _positions(reply)[0] == self.nearest[reply.probe]


def _positions(reply: Reply) -> NDArray[np.int64]:
    return np.array([int(id_.removeprefix("item-")) for id_ in reply.ids], np.int64)


@dataclass(frozen=True)
class Phase:
    """From `start` until before `end`, in seconds since 1970."""

    name: str
    start: float
    end: float


def phases_of(starts: Sequence[tuple[str, float]], end: float) -> list[Phase]:
    """Return each phase with its end, which is the next one's start; `starts` are in order."""
    times = [*(start for _, start in starts), end]
    if times != sorted(times):
        raise ValueError(f"phases begin one after the other: {starts}, {end}")
    return [Phase(name, start, times[number + 1]) for number, (name, start) in enumerate(starts)]


@dataclass(frozen=True)
class PhaseResult:
    """Latencies are of all queries that were due in the phase, failed ones too."""

    phase: Phase
    queries: int
    failures: int
    refused: int
    mixed: int
    vectors: int
    nearest_found: int
    p50_ms: float
    p99_ms: float


def judge(replies: Sequence[Reply], phases: Sequence[Phase], spaces: Mapping[str, Space]) -> list[PhaseResult]:
    """Return the result of each phase, and of all of an upgrade together.

    An answer is mixed unless one of the `spaces`, by version, has all of it.
    """
    began = next(phase.start for phase in phases if phase.name == TRANSFORMING)
    return [
        _judge_phase([reply for reply in replies if phase.start <= reply.due < phase.end], phase, spaces)
        for phase in [*phases, Phase(WHOLE, began, phases[-1].end)]
    ]


def _judge_phase(replies: Sequence[Reply], phase: Phase, spaces: Mapping[str, Space]) -> PhaseResult:
    answers = [reply for reply in replies if reply.failure is None]
    whole = [reply for reply in answers if reply.version in spaces and spaces[reply.version].has(reply)]
    by_vector = [reply for reply in whole if reply.asked is not None]
    p50, p99 = _percentiles(replies)
    return PhaseResult(
        phase,
        queries=len(replies),
        failures=len(replies) - len(answers),
        refused=sum(reply.refused for reply in replies),
        mixed=len(answers) - len(whole),
        vectors=len(by_vector),
        nearest_found=sum(spaces[reply.version].found_nearest(reply) for reply in by_vector),
        p50_ms=p50,
        p99_ms=p99,
    )


def _percentiles(replies: Sequence[Reply]) -> tuple[float, float]:
    """Return p50 and p99 in ms; NaN of none."""
    if not replies:
        return float("nan"), float("nan")
    p50, p99 = np.percentile([1_000 * reply.seconds for reply in replies], [50, 99])
    return float(p50), float(p99)


def table(results: Sequence[PhaseResult], memory: MemoryTrace) -> str:
    quiet = next(result.p99_ms for result in results if result.phase.name == QUIET)
    return markdown(_COLUMNS, [_cells(result, quiet, memory) for result in results if result.phase.name != WARM_UP])


def _cells(result: PhaseResult, quiet_p99_ms: float, memory: MemoryTrace) -> list[str]:
    phase = result.phase
    peaks = [memory.peak(name, phase.start, phase.end) for name in ("api", "worker")]
    return [
        phase.name,
        f"{phase.end - phase.start:.1f}",
        f"{result.queries:,}",
        str(result.failures),
        str(result.refused),
        str(result.mixed),
        f"{result.nearest_found / result.vectors:.1%}" if result.vectors else "",
        f"{result.p50_ms:.1f}",
        f"{result.p99_ms:.1f}",
        f"{result.p99_ms / quiet_p99_ms:.2f}",
        *(f"{peak / _MIB:.0f}" if peak else "" for peak in peaks),  # a phase may be shorter than a sample
    ]


def verdicts(results: Sequence[PhaseResult]) -> list[str]:
    """Say whether the budgets of docs/architecture.md are met."""
    by_name = {result.phase.name: result for result in results}
    quiet, whole = by_name.pop(QUIET), by_name.pop(WHOLE)
    del by_name[WARM_UP]
    many = [result for result in by_name.values() if result.queries >= _LEAST_QUERIES]
    worst = max(many, key=lambda result: result.p99_ms, default=whole)
    failures, mixed = quiet.failures + whole.failures, quiet.mixed + whole.mixed
    ratio = whole.p99_ms / quiet.p99_ms
    return [
        f"Failed queries: {failures} (budget 0: {_verdict(failures == 0)}).",
        f"Answers that are not of one generation: {mixed} (budget 0: {_verdict(mixed == 0)}).",
        f"p99 over the whole upgrade is {ratio:.2f} times the quiet one (budget {_MOST_P99:.0f}:"
        f" {_verdict(ratio <= _MOST_P99)}); in the worst phase, {worst.phase.name}, {worst.p99_ms / quiet.p99_ms:.2f}.",
    ]


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def draw(replies: Sequence[Reply], phases: Sequence[Phase], memory: MemoryTrace, path: Path) -> None:
    """Draw latencies and memory over the run, its phases shaded."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    latency, resident = figure.subplots(2, 1, sharex=True)
    began = phases[0].start

    _draw_latency(latency, replies, phases)
    for name in ("api", "worker"):
        samples = [sample for sample in memory.samples if sample.name == name and began <= sample.at < phases[-1].end]
        resident.plot([s.at - began for s in samples], [s.resident_bytes / _MIB for s in samples], label=name)
    resident.set_ylabel("resident MiB")
    resident.set_ylim(bottom=0)
    resident.set_xlabel("seconds")

    for panel in (latency, resident):
        for number, phase in enumerate(phases):
            panel.axvspan(phase.start - began, phase.end - began, color=f"C{number}", alpha=0.12, linewidth=0)
        panel.legend(loc="upper left")
        panel.grid(alpha=0.3)
    for phase in phases:
        middle = (phase.start + phase.end) / 2 - began
        latency.annotate(
            phase.name, (middle, 1.02), xycoords=("data", "axes fraction"), rotation=40, ha="left", fontsize=8
        )

    figure.savefig(path, dpi=110)


def _draw_latency(panel: Axes, replies: Sequence[Reply], phases: Sequence[Phase]) -> None:
    began = phases[0].start
    edges = np.arange(began, phases[-1].end, _BIN_SECONDS)
    bins = [[reply for reply in replies if start <= reply.due < start + _BIN_SECONDS] for start in edges]
    middles = edges - began + _BIN_SECONDS / 2
    percentiles = np.array([_percentiles(within) for within in bins])
    for column, name in enumerate(("p50", "p99")):
        panel.plot(middles, percentiles[:, column], label=f"{name} of {_BIN_SECONDS:.0f} s")
    failed = [reply for reply in replies if reply.failure is not None]
    if failed:
        panel.plot([r.due - began for r in failed], [1_000 * r.seconds for r in failed], "rx", label="failed")
    panel.set_yscale("log")
    panel.set_ylabel("ms")
