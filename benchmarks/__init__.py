"""Measures the exporter, a lower bound and its peers in one run, as a table and a chart (make bench)."""
