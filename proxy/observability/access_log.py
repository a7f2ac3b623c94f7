"""The access log has one line for each request of HTTP, written when the request is over."""

import logging

from proxy.happenings import Answered
from proxy.log_lines import plain_handler

access = logging.getLogger("kvproxy.access")


def write_line(told: Answered) -> None:
    """Log a request; probes and scrapes at level DEBUG."""
    level = logging.DEBUG if told.probe else logging.INFO
    if not access.isEnabledFor(level):
        return
    notes = "".join([f" {name}={value}" for name, value in told.notes.items()])
    line = f"{told.method} {told.path} {told.status} {told.seconds * 1000:.1f}ms id={told.request_id}{notes}"
    if (handler := plain_handler(access, level)) is not None:
        handler.write_soon(level, line)
    else:
        access.log(level, "%s", line)
