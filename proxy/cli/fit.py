"""`kvproxy fit` takes a configuration and has a profile written, and words for standard output."""

import functools
import pathlib
import sys
import time

import msgspec

from proxy.cli.flags.reading import FitOptions
from proxy.config import Config
from proxy.connectors import load_connector
from proxy.errors import ConfigError
from proxy.fitting.fleet import Prober
from proxy.fitting.outcome import outcome_of
from proxy.fitting.shown import source_of, words_of
from proxy.latency.profiles import EngineSize, written
from proxy.upstream.client import EngineClient


async def fit(config: Config, options: FitOptions) -> str:
    """Probe the configured engines, and write a profile of them. Returns what to say.

    Raises ConfigError, LegError, or BusyError.
    """
    was_there = options.out.exists()
    _writable(options.out)
    try:
        words = await _fit(config, options)
    except BaseException:
        if not was_there:
            options.out.unlink()  # it is empty
        raise
    return f"{words}\nthe profile is in {options.out}"


async def _fit(config: Config, options: FitOptions) -> str:
    async with EngineClient(
        engine_api_key=config.engine_api_key,
        engine_ca=config.security.engine_ca,
        connect_timeout_s=config.deadlines.connect_s,
    ) as client:
        for spec in config.instances:
            client.reach(spec)
        prober = Prober(
            config,
            client,
            load_connector(config.connector),
            limit_s=options.limit_s,
            longest=options.longest,
            anyway=options.anyway,
            progress=_shown,
        )
        try:
            await prober.run()
        finally:
            _shown("")
            await prober.close()
    versions = {address: told.version for address, told in prober.told.items()}
    usual = EngineSize()
    blocks = [told.blocks for told in prober.told.values() if told.blocks is not None]
    sizes = [told.block_size for told in prober.told.values() if told.block_size is not None]
    source = functools.partial(source_of, time.strftime("%Y-%m-%d"), config.model, versions)
    outcome = outcome_of(
        prober.seen,
        {spec.address: spec.role for spec in config.instances},
        source=source(),
        chunk_tokens=options.chunk_tokens,
        engine=EngineSize(
            block_size=min(sizes, default=usual.block_size),
            blocks=max(1, min(blocks, default=usual.blocks + 1) - 1),  # block 0 holds nothing
        ),
    )
    profile = msgspec.structs.replace(outcome.profile, source=source(outcome.unknown))
    try:
        options.out.write_text(written(profile), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {options.out}: {error.strerror}") from None
    return words_of(outcome, prober.seen)


def _writable(path: pathlib.Path) -> None:
    """Raise ConfigError now and not after all the probes."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}") from None


def _shown(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
