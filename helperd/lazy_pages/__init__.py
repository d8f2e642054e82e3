"""Restore on demand: a stock CRIU's lazy-pages daemon, over images of any kind."""
