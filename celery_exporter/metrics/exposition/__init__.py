"""Exposition formats, and which series are at 0 first."""
