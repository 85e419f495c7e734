"""Prometheus exporter for Celery: accurate, bounded and available."""

__version__ = "0.1.0"
