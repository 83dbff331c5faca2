"""The supervisor: it binds once, forks workers, and keeps as many as it was asked for."""
