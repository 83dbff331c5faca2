"""The processes that are forked to serve: the worker, and the template that workers are forked from with --preload."""
