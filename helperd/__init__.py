"""helperd refills the memory of a process being restored from LZ4-compressed CRIU images."""

__version__ = "0.1.0"
