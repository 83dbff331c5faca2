"""The one table of options, and where the value of each comes from."""
