"""What the master makes of a template's last words."""

from __future__ import annotations

import mmap
import os
import socket

from prefork.core.log import open_log
from prefork.core.process import spawn
from prefork.master.children import Children
from prefork.master.templates import TemplateHandle, Templates
from prefork.runtime.master_link import OF_TEMPLATE, Receiver


def test_a_template_that_lies_while_it_leaves_is_not_signalled_when_it_is_reaped() -> None:
    report, report_end = os.pipe()
    orders, orders_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = spawn(lambda: 0)
    os.waitpid(pid, 0)
    templates = Templates(known=Children(open_log()))
    template = TemplateHandle(
        pid=pid,
        generation=1,
        orders=orders,
        receiver=Receiver(report, OF_TEMPLATE),
        beat=memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q"),
        known=templates.known,
        prepared=True,
    )
    templates._live[1] = template
    templates.leave(0.0)
    assert templates.leaving
    os.write(report_end, b'{"kind":"nonsense"}\n')
    os.close(report_end)
    orders_end.close()
    templates.remove(template)
    assert template.receiver.fault
    assert not templates.pids()
