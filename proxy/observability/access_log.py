"""The access log has one line for each request that is over, whoever asked for what."""

import logging

from proxy.happenings import Answered

access = logging.getLogger("kvproxy.access")


def write_line(told: Answered) -> None:
    """Log a request; probes and scrapes are no news."""
    level = logging.DEBUG if told.probe else logging.INFO
    if access.isEnabledFor(level):
        access.log(
            level,
            "%s %s %d %.1fms id=%s%s",
            told.method,
            told.path,
            told.status,
            told.seconds * 1000,
            told.request_id,
            "".join(f" {name}={value}" for name, value in told.notes.items()),
        )
