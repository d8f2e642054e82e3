"""helperd's tests."""
