"""Event subscriptions, one file per way of reading; `factory` chooses, `base` says what each promises."""
