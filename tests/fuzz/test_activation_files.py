"""Segments of any content: the rows that were written, or none, and then they are computed again."""

import shutil
import struct
import zlib

import numpy as np
import pytest
from fuzzing import changed, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from stores import ABOUT, KIND, keys_of, kind_of, opened, written

from fastclf.activations import segment
from fastclf.activations.fill import Job, stored
from fastclf.activations.segment import BLOCKS, KEYS, ROWS, USED, Segment
from fastclf.activations.store import Store

N, STEP, RECORD = 23, 7, 28
NAMES = (BLOCKS, KEYS, ROWS)
WANTED = keys_of(N)


class File:
    def __init__(self, folder):
        self.folder, self.store = folder, folder / KIND.name
        self.rows = np.random.default_rng(3).standard_normal((N, 3)).astype("f4")
        place = written(self.store, WANTED, self.rows, STEP)
        self.contents = [(place / name).read_bytes() for name in NAMES]

    def put(self, contents, name="segment-0", used=None):
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.store / name).mkdir(parents=True)
        for file, content in zip((*NAMES, USED), (*contents, used), strict=True):
            if content is not None:
                (self.store / name / file).write_bytes(content)

    def check(self, tally):
        """What is found is right, and the rest is computed."""
        segment._checked.clear()
        store = Store([self.store], KIND)
        while (rows := store.open(WANTED[(there := np.setdiff1d(np.arange(N), store.missing(WANTED)))])) is None:
            pass
        np.testing.assert_array_equal(rows, self.rows[there])
        tally.count("all" if len(there) == N else "some" if len(there) else "nothing")
        del rows

        def compute(numbers):
            yield numbers, self.rows[numbers], len(numbers)

        np.testing.assert_array_equal(stored(Job(KIND, ABOUT, WANTED.copy(), "x"), [self.folder], compute), self.rows)
        np.testing.assert_array_equal(opened(self.store, WANTED), self.rows)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return File(tmp_path_factory.mktemp("activations") / "cache")


@st.composite
def contents(draw, file):
    """The files of a segment of which something is changed, gone, doubled or in another order."""
    blocks, keys, rows = file.contents
    records = [blocks[at : at + RECORD] for at in range(0, len(blocks), RECORD)]
    for _ in range(draw(st.integers(0, 2))):
        at, other = draw(st.integers(0, len(records) - 1)), draw(st.integers(0, len(records) - 1))
        what = draw(st.sampled_from(["swap", "double", "remove"]))
        if what == "swap":
            records[at], records[other] = records[other], records[at]
        elif what == "double":
            records.insert(at, records[other])
        elif len(records) > 1:
            del records[at]
    found = [b"".join(records), keys, rows]
    for i in range(3):
        if draw(st.integers(0, 2)) == 0:
            zeros = st.just(bytes(len(found[i])))
            found[i] = draw(st.none() | changed(found[i]) | st.binary(max_size=50) | zeros)
    return found


@fuzzed
@given(st.data())
def test_a_segment(file, tally, data):
    name = data.draw(st.sampled_from(["segment-0", "segment.tmp-00000000"]))
    file.put(data.draw(contents(file)), name, data.draw(st.none() | st.binary(max_size=100)))
    file.check(tally)


numbers = st.integers(0, 25) | st.sampled_from([2**31, 2**63, 2**64 - 1])


@fuzzed
@given(blocks=st.lists(st.tuples(numbers, numbers, st.booleans()), max_size=4))
def test_blocks_that_were_never_written(file, tally, blocks):
    """Records whose own checksums agree but say anything: no row that was not written is ever served."""
    _, keys, rows = file.contents
    records = b""
    for first, n, agree in blocks:
        parts = keys[first * 32 : (first + n) * 32], rows[first * 12 : (first + n) * 12]
        record = struct.pack("<QQII", first, n, *(zlib.crc32(part) ^ (not agree) for part in parts))
        records += record + struct.pack("<I", zlib.crc32(KIND.name.encode() + record))
    file.put([records, keys, rows])
    file.check(tally)


@fuzzed
@given(salt=st.integers(0, 3), width=st.integers(1, 5), dtype=st.sampled_from(["float16", "float32"]))
def test_another_question(file, tally, salt, width, dtype):
    """A segment answers for its own store only, even where the sizes agree."""
    kind, _ = kind_of(width, dtype, salt)
    file.put(file.contents)
    found = Segment(file.store / "segment-0", kind)
    found.refresh()
    assert len(found.keys) == (N if kind == KIND else 0)
    tally.count("the rows" if kind == KIND else "nothing")
