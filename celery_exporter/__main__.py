"""`python -m celery_exporter`."""

from celery_exporter.cli import main

main()
