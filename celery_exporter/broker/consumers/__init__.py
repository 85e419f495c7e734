"""Event subscriptions, one file per way of reading; `factory` chooses, `base` has their interface."""
