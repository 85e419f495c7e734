"""What outlasts a restart: the state file, and what is in it."""
