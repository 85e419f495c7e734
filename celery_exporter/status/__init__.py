"""The read model for people: health checks, thresholds, tables, verdicts on tasks. Pure."""
