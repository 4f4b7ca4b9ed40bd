"""What stands behind config.py: values turned into types, what settings may be, TOML."""
