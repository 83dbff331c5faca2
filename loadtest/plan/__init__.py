"""What is measured: the plan of a run, the values of its keys, and where it is read from."""
