"""The bench suite: `overfeat bench`."""
