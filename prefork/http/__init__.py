"""HTTP/1.1 as bytes: requests in, responses out. No sockets, no processes, no logging.

`parser.py` is the way in for requests, `wsgi.py` for what answers them.
"""
