"""Counts and times of the server, as Prometheus reads them."""

import resource
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
HELP = {
    "overfeat_requests_total": "Requests and frames answered, by endpoint and status.",
    "overfeat_request_seconds": "Time from request to answer.",
    "overfeat_stage_seconds_total": "Time of evaluation, by stage.",
    "overfeat_batch_images": "Images that passed through a net together.",
    "overfeat_queue_length": "Requests that wait for the net.",
    "overfeat_live_connections": "Open streams of frames.",
    "overfeat_held_bytes": "Bytes of requests and images in memory.",
    "process_resident_memory_bytes": "Memory of the process.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms; safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], tuple[Sequence[float], list[int], list[float]]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + amount

    def observe(self, name: str, value: float, buckets: Sequence[float] = SECONDS, **labels: str) -> None:
        """Add a value to a histogram."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            _, counts, total = self._histograms.setdefault(key, (buckets, [0] * (len(buckets) + 1), [0.0]))
            counts[bisect_left(buckets, value)] += 1
            total[0] += value

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of them, with these gauges, in Prometheus's text format."""
        samples: dict[str, list[str]] = {}
        with self._lock:
            for (name, labels), value in self._counters.items():
                samples.setdefault(name, []).append(f"{name}{_braces(labels)} {value:.10g}")
            for (name, labels), (buckets, counts, total) in self._histograms.items():
                lines, running = samples.setdefault(name, []), 0
                for limit, count in zip([*map("{:g}".format, buckets), "+Inf"], counts, strict=True):
                    running += count
                    lines.append(f"{name}_bucket{_braces((*labels, ('le', limit)))} {running}")
                lines += [f"{name}_sum{_braces(labels)} {total[0]:.10g}", f"{name}_count{_braces(labels)} {running}"]
        types = {name: "counter" if name.endswith("_total") else "histogram" for name in samples}
        for name, value in gauges.items():
            samples[name], types[name] = [f"{name} {value:.10g}"], "gauge"
        blocks = [[f"# HELP {name} {HELP[name]}", f"# TYPE {name} {types[name]}", *samples[name]] for name in samples]
        return "\n".join(line for block in blocks for line in block) + "\n"


def resident_bytes() -> int:
    """The memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
