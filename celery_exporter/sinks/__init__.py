"""Where records of single tasks are written to, one file per kind of sink; `factory` chooses."""
