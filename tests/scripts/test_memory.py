"""A process's own memory is what it has written itself, not what it maps of files that others map, too."""

import mmap
import os
import pathlib

from scripts.workshop.bench.cpu import memory_mib, own_memory_mib

SIZE_BYTES = 32 << 20
MOST_MIB, FEW_MIB = 24, 8


def test_what_a_process_writes_is_its_own() -> None:
    before = own_memory_mib(os.getpid())
    held = bytearray(b"x") * SIZE_BYTES
    assert own_memory_mib(os.getpid()) - before > MOST_MIB
    assert len(held) == SIZE_BYTES


def test_a_file_that_is_read_in_place_is_not(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(b"x" * SIZE_BYTES)
    own, all_of_it = own_memory_mib(os.getpid()), memory_mib(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert view[:: mmap.PAGESIZE].count(b"x") == SIZE_BYTES // mmap.PAGESIZE
        assert memory_mib(os.getpid()) - all_of_it > MOST_MIB
        assert own_memory_mib(os.getpid()) - own < FEW_MIB
