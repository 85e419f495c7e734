"""The read model for people: health checks, thresholds, tables. Pure."""
