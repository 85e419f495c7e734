"""Measures the exporter, a lower bound and its peers in one run (make bench)."""
