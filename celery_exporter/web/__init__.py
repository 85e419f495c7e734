"""HTTP: everything served from memory."""
