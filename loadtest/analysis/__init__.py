"""What rounds say: a verdict on each, and the comparison of all of them. Pure computation."""
