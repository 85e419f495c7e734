"""Exposition formats, content negotiation, and the series that are exposed at 0 first."""
