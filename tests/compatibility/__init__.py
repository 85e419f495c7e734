"""The built wheel on other Pythons, with other dependencies, and against other versions of Celery.

`make pythons`, `make lowest`, `make latest` and `make celery-versions` run this package. pytest collects
nothing here, because the versions take many minutes.
"""
