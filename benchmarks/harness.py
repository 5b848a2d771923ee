"""What every benchmark shares: rounds that alternate between contestants, medians, figures with their bars, the hardware."""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path


@dataclass
class Figure:
    """One measured number. ``bar`` is an upper limit, or a lower one where ``higher`` is set; None: reported only."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    higher: bool = False
    detail: dict = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.higher else self.value <= self.bar

    def line(self) -> str:
        mark = {True: "met", False: "MISSED", None: "-"}[self.met]
        bar = "" if self.bar is None else f"{'>=' if self.higher else '<='} {self.bar:g}"
        detail = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.detail.items())
        return f"{self.name:<62} {self.value:>10.4g} {self.unit:<6} {bar:>9} {mark:>7}   {detail}"


def alternate(rounds: int, **contestants: Callable[[], float]) -> dict[str, list[float]]:
    """Run contestants in turn, so that the machine's moods hit all of them; each returns its own seconds."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            taken[name].append(run())
    return taken


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def each(work: Callable[[int], object], count: int) -> list[float]:
    """Return the seconds of each of ``count`` calls."""
    return [seconds(lambda i=i: work(i)) for i in range(count)]


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p10": ordered[len(ordered) // 10], "p90": ordered[len(ordered) * 9 // 10]}


def disk_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def fsync_tree(path: Path) -> None:
    """Give a peer that never calls fsync the durability that ours has."""
    for one in [*path.rglob("*"), path, path.parent]:
        descriptor = os.open(one, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def gate(what: str) -> Iterator[None]:
    """Print no figure of something that is wrong."""
    try:
        yield
    except AssertionError as error:
        sys.exit(f"correctness gate failed: {what}: {error}")


def hardware() -> dict:
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("agentdb-lance", "apsw", "pylance", "lancedb", "pyarrow")},
    }


def save(figures: list[Figure], target: Path, *, quick: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "hardware": hardware(),
        "figures": [{**asdict(one), "met": one.met} for one in figures],
    }
    target.write_text(json.dumps(result, indent=1) + "\n")
