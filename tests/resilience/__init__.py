"""What networks and brokers do to an exporter, and what it may make of it."""
