"""Work on Dask's workers: scaling, the scheduler's overhead, and a model of the throughput."""

from bench.pages.tables import measured_on, number, table


def page(results: dict) -> str:
    scaling, overhead, side = results["scaling"], results["overhead"], results["side"]
    rows = [[f"{int(n):,}", *(number(rate) for rate in rates)] for n, rates in results["model"].items()]
    heads = ["workers", *(f"images/s at {speed:,} MB/s" for speed in results["bandwidths"])]
    return f"""# Work on Dask's workers

{measured_on(results)}

Detection with the shipped detector (`overfeat.fast`, one scale factor) in {results["images"]} JPEG files of
{side} x {side} px, {results["megabytes"]:.2f} MB each, on workers of one thread on this machine; the best of several
runs, in which one and two workers took turns. The nets are loaded.

| workers | images/s | |
| --- | ---: | --- |
| 1 | {scaling["one"]:.2f} | |
| 2 | {scaling["two"]:.2f} | {scaling["two"] / scaling["one"]:.2f} times |

A group that does nothing takes {overhead["ms a group"]:.2f} ms with {overhead["queued"]} of them on their way, and
{overhead["cpu ms a group"]:.2f} ms of processor time in the scheduler and the command.
{overhead["items"]:,} items that do nothing take {overhead["seconds"]:.1f} s in groups of {overhead["group"]:,}; the
command and the scheduler hold {overhead["MiB of the command"]:.0f} MiB.

## Throughput by the number of workers

From these constants: the least of what workers compute, what the scheduler sends out, in groups that take a second, and
what the storage gives to all of them together. Not measured.

{table(heads, rows)}
"""
