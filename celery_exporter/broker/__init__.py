"""I/O with one broker: event consumers, queue lengths, and worker inspection."""
