"""Gives each shard only its own events: `celery-exporter relay`.

    durable queue → split → one queue for each shard

A relay has no state: what it has not published, its own queue still has.
"""
