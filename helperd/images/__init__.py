"""Image directories of CRIU: inventory, pagemaps, chains of parents, pages, compression.

For offline tools and restore clients. The helper itself never imports this package: it is told
offsets and sizes in its requests.
"""
