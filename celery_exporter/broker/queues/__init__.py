"""Queue lengths, one file per kind of broker; `factory` chooses, `base` has their interface."""
