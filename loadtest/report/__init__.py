"""A comparison as people and programs read it: one model, and a module for each format."""
