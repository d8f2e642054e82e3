"""The other end of ``criu --stream``: images captured, served, and carried in shards."""
