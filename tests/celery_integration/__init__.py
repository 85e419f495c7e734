"""Celery's own integration tests, black-box, and the exporter held against what their tasks wrote.

`make celery-integration` runs it. docs/explanation/accuracy.md has the result.
"""
