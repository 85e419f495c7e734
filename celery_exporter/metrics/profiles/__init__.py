"""One module for each profile: a family of metric names, as rows of a table."""
