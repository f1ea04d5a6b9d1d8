"""Tables in the cache are mapped, and a process holds no more of them than it has read of late."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from peftkit.data import arrow_files
from peftkit.data.arrow_files import count_read, written_table

MIB = 2**20


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of 64 MiB, memory-mapped."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    values = pa.array(np.arange(64 * MIB // 8))

    def write(sink):
        with pa.ipc.new_stream(sink, pa.schema({"value": pa.int64()})) as writer:
            writer.write_table(pa.table({"value": values}), max_chunksize=MIB)

    return written_table("numbers", write, is_small=False)


def mapped_mib():
    """The pages of files that the process holds, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile"):
            return int(line.split()[1]) / 1024
    raise AssertionError("there is no RssFile")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's counts of pages")
def test_pages_that_were_read_are_let_go(table, monkeypatch):
    column = table.column("value")

    def hold_after(steps):
        before = mapped_mib()
        for number in range(0, len(column), len(column) // steps):
            assert column[number].as_py() == number
            count_read()
        return mapped_mib() - before

    monkeypatch.setattr(arrow_files, "_READS_BEFORE_LETTING_GO", 10**9)
    assert hold_after(4096) > 32
    monkeypatch.setattr(arrow_files, "_READS_BEFORE_LETTING_GO", 128)
    assert hold_after(4096) < 16
    assert column[-1].as_py() == len(column) - 1
