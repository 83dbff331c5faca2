"""The C library, for the few system calls that Python has no function for.

Loaded when this is imported, which is before the first fork: dlopen(3) takes locks that a thread of an application may
hold while another one forks.
"""

import ctypes

libc = ctypes.CDLL(None)
