"""The load lab: drives servers as command lines and compares what it measured."""
