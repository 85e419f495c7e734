"""The history of tasks: what a file keeps of them."""
