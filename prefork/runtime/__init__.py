"""What every engine needs of a worker: the link to the master, the application, hooks, stream connections."""
