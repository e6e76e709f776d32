"""Where the time of an evaluation goes."""

REPEATS = 5  # of every timing, by default
