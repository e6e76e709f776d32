"""Reading windows of large images: time and memory by reader."""

from bench.pages.tables import measured_on, table


def page(results: dict) -> str:
    side, window = results["side"], results["window"]
    rows = [[name, f"{one['ms']:.1f}", f"{one['MiB']:.0f}"] for name, one in results["readers"].items()]
    return f"""# Reading windows of large images

{measured_on(results)}

Windows of {window} x {window} px at random positions of the finest level of a pyramid of {side:,} x {side:,} px, in
tiles of 512 x 512 px: JPEG (quality 80, YCbCr) in a BigTIFF, and zstd in OME-Zarr. The median time of a window, and the
peak memory beyond the imported packages, the open file included; the best of several processes for each reader, which
took turns. The files are in the page cache.

{table(["reader", "ms", "MiB"], rows)}
"""
