"""`prefork top`: a running server, live.

A sample is the answer to `status`, with latencies. Two samples make an interval (interval.py). Keys change the view,
and interval and view become lines of styled text (view.py). All of that is pure. command.py has what is not: the screen
and the keyboard, the threads that ask the server, so that keys work while it does not answer, and the loop that waits.
"""
