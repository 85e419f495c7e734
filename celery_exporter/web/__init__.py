"""HTTP: everything served from memory except the explanation of a task, and a client for commands."""
