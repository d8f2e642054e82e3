"""The benchmark: helperd beside a C helper and beside decoding without a helper.

``make bench`` runs it; docs/performance.md says what is measured, how, and what came out.
"""
