"""The six scales of nets without a table: by table 5's ratios, and 1.4 times each other as before."""

from bench.pages.tables import measured_on, table


def summary(results: dict) -> str:
    """Both errors of every protocol, in percent."""
    rows = []
    for name, errors in results["errors"].items():
        former = results["former"]["errors"][name]
        rows.append([name, *(f"{rates[key]:.2f}" for key in ("top1", "top5") for rates in (former, errors))])
    return table(
        ["shipped net", "top-1 error %, steps of 1.4", "table 5", "top-5 error %, steps of 1.4", "table 5"], rows
    )


def page(results: dict) -> str:
    return f"""# The six scales

{measured_on(results)} The columns "steps of 1.4" were measured at commit {results["former"]["commit"]}.

A net without scales of its own takes the ratios of table 5 to its window: short sides of 1.11, 1.27, 1.43, 1.76, 1.92
and 2.09 windows. Before, each scale was 1.4 times the one before, as the paper's text suggests, up to 6.3 windows,
where most objects are larger than the window. {results["images"]} synthetic test images with one digit each;
localization is at six scales, and its box regressor was trained at the former ones.

{summary(results)}
"""
