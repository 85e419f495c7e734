"""I/O with one broker: event consumers, queue lengths, message lookups, and worker inspection."""
