"""Metric families: the model, the registry of profiles, and the exposition formats."""
