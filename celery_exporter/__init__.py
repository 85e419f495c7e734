"""Prometheus exporter for Celery: true, bounded and present."""

__version__ = "0.1.0"
