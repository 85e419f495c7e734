"""Runs Celery's own integration tests, and compares the exporter with the records of their tasks.

Run it with `make celery-integration`. docs/explanation/accuracy.md has the result.
"""
