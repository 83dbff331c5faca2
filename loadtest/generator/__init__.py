"""The part of the load generator that knows nothing of locust: what it records, and the engine for many connections.

Importing locust patches the whole process; what is here can be imported, and tested, without that.
"""
