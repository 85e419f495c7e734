"""Threads and the one lock: events, periodic jobs, checkpoints."""
