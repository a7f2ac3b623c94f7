"""`kvproxy doctor` takes a configuration, and has a report for standard output and an exit code."""

import json
import os
import shutil
import sys

from proxy.config import Config
from proxy.connectors import load_connector
from proxy.doctor.examination import Doctor
from proxy.doctor.findings import Report
from proxy.doctor.patience import PATIENCE, Patience
from proxy.doctor.report import as_json, as_text
from proxy.tokenizing import configured_tokenizer
from proxy.upstream.client import EngineClient


async def examine(config: Config, limit_s: float, patience: Patience = PATIENCE) -> Report:
    """Examine the configured instances. Raises ConfigError.

    `patience`: how long each answer is waited for.
    """
    connector = load_connector(config.connector)
    local = configured_tokenizer(config.tokenizer)
    try:
        async with EngineClient(
            engine_api_key=config.engine_api_key,
            engine_ca=config.security.engine_ca,
            connect_timeout_s=config.deadlines.connect_s,
        ) as client:
            for spec in config.instances:
                client.reach(spec)
            doctor = Doctor(config, client, connector, limit_s=limit_s, patience=patience)
            try:
                return await doctor.examine(config.instances, local)
            finally:
                await doctor.close()
    finally:
        if local is not None:
            local.close()


def shown(report: Report, *, json_wanted: bool) -> str:
    """The report for standard output, in its width, and in colours if it has any."""
    if json_wanted:
        return json.dumps(as_json(report), indent=2, ensure_ascii=False)
    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return as_text(report, colour=colour, width=shutil.get_terminal_size().columns if terminal else None)
