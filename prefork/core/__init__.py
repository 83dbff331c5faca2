"""Linux and Python, one idea a file. Nothing here knows what a server of ours is."""
