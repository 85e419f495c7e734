"""The pure core: bytes and times in, facts and sums out. No clock, thread, socket or log in here."""
