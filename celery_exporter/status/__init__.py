"""The read model for people: health checks, thresholds, tables, diagnoses on tasks. Pure."""
