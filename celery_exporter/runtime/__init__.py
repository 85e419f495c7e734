"""The process: logging, systemd, memory, signals, version."""
