"""HTTP: everything served from memory, and a client for commands."""
