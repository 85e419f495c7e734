"""Event streams in a file: the format, and the commands that record and replay one."""
