"""A workload is read from files and folders: all of it begins at 0, in the order of arrival, and its `source`
says what was left out and what was assumed.
"""

import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from proxy.errors import TraceError
from proxy.traces.ordering import in_order
from proxy.traces.readers.base import Reading, ReadingOptions
from proxy.traces.readers.formats import READERS, format_of
from proxy.traces.readers.lines import UNKNOWN_OUTPUT
from proxy.traces.workload import TraceRequest, Workload

SUFFIXES = (".json", ".jsonl", ".csv", ".gz")
"""Files of a folder that are read."""


def read(
    paths: pathlib.Path | Sequence[pathlib.Path],
    options: ReadingOptions | None = None,
    *,
    format: str | None = None,  # noqa: A002  # the word that users know
    limit: int | None = None,
    from_s: float = 0.0,
    to_s: float = math.inf,
) -> Workload:
    """The workload of a file, of all files of a folder, or of several of either together. Raises TraceError.

    Files together are one workload: ids of blocks mean the same in all of them, except in sessions of agents
    whose ids are their own. `format`: a key of `READERS`; None to find out. `limit`: how many requests are
    read at most. `from_s`, `to_s`: what comes before or from then on, in seconds since the first line, is not
    kept: a slice of a week needs the memory of the slice.
    """
    given = [paths] if isinstance(paths, pathlib.Path) else list(paths)
    reading = Reading(options or ReadingOptions())
    formats: dict[str, None] = {}
    files = list(_files(given))
    if format is not None and format not in READERS:
        raise TraceError(f"{format}: no format; there are {', '.join(READERS)}")

    def requests() -> Iterator[TraceRequest]:
        for file in files:
            kind = format or format_of(file)
            formats[kind] = None
            yield from READERS[kind](file, reading)

    where = ", ".join(map(str, given))
    taken = _within(itertools.islice(requests(), limit), from_s, to_s)
    if not taken:
        raise TraceError(f"{where}: no request in it")
    taken = in_order(_answered(taken, reading, where))
    began_s = min(request.at_s for request in taken)
    if began_s:
        taken = [msgspec.structs.replace(request, at_s=request.at_s - began_s) for request in taken]
    return Workload(given[0].name, taken, _source(given, formats, reading))


def _within(requests: Iterable[TraceRequest], from_s: float, to_s: float) -> list[TraceRequest]:
    """Those that come in a span of time; of a closed loop all, or none."""
    if from_s <= 0 and to_s == math.inf:
        return list(requests)
    found: list[TraceRequest] = []
    places: dict[int, int] = {}
    first_s: float | None = None
    for index, request in enumerate(requests):
        first_s = request.at_s if first_s is None else first_s
        if not from_s <= request.at_s - first_s < to_s:
            continue
        places[index] = len(found)
        after = places[request.after] if request.after is not None else None
        found.append(request if after == request.after else msgspec.structs.replace(request, after=after))
    return found


def _files(given: Iterable[pathlib.Path]) -> Iterator[pathlib.Path]:
    for path in given:
        try:
            is_folder = path.is_dir()
            found = [each for each in path.iterdir() if each.is_file()] if is_folder else []
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}") from None
        if not is_folder:
            yield path
            continue
        found = sorted(each for each in found if each.suffix in SUFFIXES)
        if not found:
            raise TraceError(f"{path}: no file in it that ends in {', '.join(SUFFIXES)}")
        yield from found


def _answered(requests: Sequence[TraceRequest], reading: Reading, where: str) -> Sequence[TraceRequest]:
    """Answers of unknown length get the mean of the others'.

    Raises TraceError, which names `where`, if all are unknown.
    """
    known = [request.output_tokens for request in requests if request.output_tokens != UNKNOWN_OUTPUT]
    if len(known) == len(requests):
        return requests
    if not known:
        raise TraceError(f"{where}: output_length: no line tells how long an answer was")
    mean = max(round(sum(known) / len(known)), 1)
    reading.assumed.add(
        f"{len(requests) - len(known)} answers of unknown length have the mean of the others, {mean} tokens"
    )
    return [
        request
        if request.output_tokens != UNKNOWN_OUTPUT
        else msgspec.structs.replace(request, output_tokens=mean)
        for request in requests
    ]


def _source(given: Sequence[pathlib.Path], formats: Iterable[str], reading: Reading) -> str:
    parts = [f"{', '.join(str(path) for path in given)} ({', '.join(formats)})"]
    parts += [f"{count} left out {why}" for why, count in sorted(reading.left_out.items())]
    parts += sorted(reading.assumed)
    return "; ".join(parts)
