"""Dumps and restores by real CRIUs; `make test-criu` runs them."""
