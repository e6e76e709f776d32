"""Detection in large images: memory, reading and resuming, by the size of the image."""

from bench.pages.tables import measured_on, table


def page(results: dict) -> str:
    rows = [
        [
            f"{int(side):,}", f"{one['file_bytes'] / 1e6:.1f}", f"{one['blocks']}", f"{one['before_mib']:.0f}",
            f"{one['peak_mib']:.0f}", f"{100 * one['reading']:.1f} %",
            f"{one['repeated_blocks']}",
        ]
        for side, one in results["images"].items()
    ]  # fmt: skip
    heads = ["side", "file, MB", "blocks", "start, MiB", "peak, MiB", "reading", "blocks repeated"]
    merged = results["merge"]
    return f"""# Detection in large images

{measured_on(results)}

The shipped detector (digits) at scale factor {results["scale"]:g} with `overfeat.fast` and a memory limit of
{results["limit_mib"]:,} MiB, in pyramids of JPEG tiles of 512 x 512 px. Each image is evaluated by a process of its
own, which is killed after a third of the blocks and started again. "start" is the resident memory once all packages
are imported and compiled, "peak" the largest of the whole run; "reading" the fraction of the time in which pixels are
read, decoded and resized; "blocks repeated" those that the second process evaluated again.

{table(heads, rows)}

The sweep that merges {merged["candidates"]:,} boxes around {merged["candidates"] // 20:,} objects, from the files of
the blocks of an image of 100,000 px, takes {merged["seconds"]:.0f} s and {merged["mib"]:.0f} MiB; all boxes together
are {merged["all_mib"]:.0f} MiB before they are indexed.
"""
