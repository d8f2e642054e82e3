"""Modules generated from protos/ by scripts/protos.py; do not edit them by hand."""
