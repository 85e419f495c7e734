"""I/O with one broker: events in, depths of queues, and what workers answer."""
