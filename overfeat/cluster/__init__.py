"""The same work over many machines: a function of many items on Dask's workers, and parts of job arrays."""

from overfeat.cluster.dispatch import run as run
