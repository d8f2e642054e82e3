"""The benchmark's own failure."""


class BenchError(Exception):
    """The benchmark cannot go on, or something restored wrong bytes; the message says what."""
