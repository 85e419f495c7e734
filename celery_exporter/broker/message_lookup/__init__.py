"""Where the message of a task is, one file per kind of broker; `factory` chooses."""
