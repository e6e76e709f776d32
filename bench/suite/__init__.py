"""The bench suite: `python -m bench`."""
