"""Where the time of one evaluation goes, from `overfeat profile`."""

from bench.pages.tables import measured_on
from overfeat.profiling.table import table as profile_table


def page(results: dict) -> str:
    return f"# Where the time goes\n\n{measured_on(results)}\n\n```\n{profile_table(results)}\n```\n"
