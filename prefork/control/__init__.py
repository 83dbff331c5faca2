"""The control socket: where it is, what is said over it, and its two ends."""
