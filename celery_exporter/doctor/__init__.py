"""The command `doctor`: find out why metrics are missing, and what helps."""
