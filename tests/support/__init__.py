"""What the tests share: a helper spoken to byte by byte, requests and images of every kind."""
