"""`prefork top`: a running server, live.

A sample is the answer to `status`, with latencies. Two samples make an interval (interval.py), keys change the view
(view.py), interval and view become lines of styled text (render.py), and the screen paints these (terminal.py). Only
the screen is not pure. command.py has the loop that waits; threads ask the server, so that keys work while it does not
answer.
"""
