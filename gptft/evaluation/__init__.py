"""What a model has learned: its responses compared with those expected."""
