"""The pure core: bytes and times in, sums out. No clock, thread, socket or log in here."""
