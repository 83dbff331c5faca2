"""The commands. Nothing else may import this package."""
