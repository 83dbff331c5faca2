"""`prefork top`: a running server, live.

A sample is the answer to `status`, with latencies; two of them make an interval (interval.py); what the user does with
keys changes the view (view.py); interval and view make a picture, plain lines (picture.py), which the screen paints
(screen.py). All of that is pure but the screen. Only loop.py waits, and a thread asks the server (courier.py), so that
keys work while a server does not answer.
"""
