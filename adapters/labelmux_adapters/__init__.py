"""What a task adds to the frozen encoder: the adapter file, its method, and the bank."""
