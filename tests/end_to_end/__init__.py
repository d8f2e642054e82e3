"""End-to-end tests of the helper: real processes, real pipes, real memory."""
