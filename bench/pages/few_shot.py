"""Classes learned from one, three and five pictures."""

from bench.pages.tables import measured_on, table

DEFAULT = "SqueezeNet"


def summary(results: dict) -> str:
    """A sentence: accuracy of the default from one and five pictures."""
    parts = []
    for title, rates in results["rates"].items():
        one, five = (rates[DEFAULT][shots]["accuracy"] for shots in ("1", "5"))
        parts.append(f"{one:.0f} and {five:.0f} % of {title} ({results['sets'][title]['way']}-way)")
    return "; ".join(parts)


def page(results: dict) -> str:
    sizes = "\n".join(
        f"- {title}: {s['classes']} classes of {s['pictures']} pictures, {s['way']}-way"
        for title, s in results["sets"].items()
    )
    names = list(next(iter(results["rates"].values())))
    return f"""# Learned from a few pictures

{measured_on(results)}

`overfeat.Prototypes` on classes that the nets never saw; {results["episodes"]:,} episodes of random classes, of each
one query and one, three or five pictures to learn from. Letters are learned from other fonts than
the query's, or from other families of fonts; photographs are turned by up to 20 degrees, cropped to half to nine tenths
of their side, mirrored, and changed in brightness and contrast. "SqueezeNet" is the default of the library: the maps
before the classifier, averaged over 3x3 parts of the window. Pixels suit letters that are as large as each other and
in the middle, as these are.

{sizes}

## Accuracy %

{_table(results, names)}

## The default threshold, {results["threshold"]:g}

How many of the scores of the right class reach it, and of those of other classes.

{_thresholds(results)}
"""


def _table(results: dict, names: tuple[str, ...] | list[str]) -> str:
    rows = []
    for title, rates in results["rates"].items():
        for name in names:
            cells = [f"{rate['accuracy']:.1f} ± {rate['error']:.1f}" for rate in rates[name].values()]
            rows.append([f"{title} ({results['sets'][title]['way']}-way): {name}", *cells])
    return table(["classes and features", "1 picture", "3 pictures", "5 pictures"], rows)


def _thresholds(results: dict) -> str:
    rows = []
    for title, rates in results["rates"].items():
        shots = rates[DEFAULT]
        rows.append([title, *(f"{shots[n][key]:.1f}" for key in ("accepted", "mistaken") for n in ("1", "5"))])
    return table(["classes", "right %, 1 picture", "5 pictures", "others %, 1 picture", "5 pictures"], rows)
