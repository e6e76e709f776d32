"""Where the time of one evaluation goes, from `overfeat profile`."""

from bench.pages.tables import measured_on
from overfeat.models.architecture import ARCHITECTURES
from overfeat.profiling.table import table as profile_table


def page(results: dict) -> str:
    if isinstance(results["stride"], str):  # as results were saved before strides were pixels
        results = results | {"stride": ARCHITECTURES[results["net"]].stride(results["stride"])}
    return f"# Where the time goes\n\n{measured_on(results)}\n\n```\n{profile_table(results)}\n```\n"
