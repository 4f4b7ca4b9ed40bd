"""A run's folder, resuming, and what the console shows."""
