"""Activation files of any content: the rows that were written, or none, and then they are computed again."""

import shutil

import numpy as np
import pytest
from fuzzing import changed, fuzzed
from hypothesis import given
from hypothesis import strategies as st

from fastclf.activations import store
from fastclf.activations.manifest import Block, block_line, header_line
from fastclf.activations.store import MANIFEST, ROWS, header_of, open_activations
from fastclf.activations.writer import ActivationWriter

SHAPE, DTYPE, STEP = (23, 5), "float16", 7
BAD = {9: "empty file", 22: "line\nbreak"}


def fill(folder, rows):
    """Computes what is not there, as the pass does."""
    with ActivationWriter(folder, "k", SHAPE, DTYPE) as writer:
        while (first := writer.rows_done) < len(rows):
            bad = {row: why for row, why in BAD.items() if first <= row < first + STEP}
            writer.write(rows[first : first + STEP], bad)
        writer.finish()


class File:
    def __init__(self, folder):
        self.folder = folder
        self.rows = np.random.default_rng(3).standard_normal(SHAPE).astype(DTYPE)
        self.rows[list(BAD)] = 0
        fill(folder, self.rows)
        self.manifest, self.data = ((folder / "k" / name).read_bytes() for name in (MANIFEST, ROWS))
        self.lines = self.manifest.splitlines(keepends=True)

    def put(self, manifest, data, name="k"):
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / name).mkdir(parents=True)
        for file, content in ((MANIFEST, manifest), (ROWS, data)):
            if content is not None:
                (self.folder / name / file).write_bytes(content)

    def open(self, key="k", shape=SHAPE, dtype=DTYPE):
        store._checked.clear()  # as another process would
        self.bad = None

        def accept(bad):
            self.bad = dict(bad)
            return True

        return open_activations(self.folder, key, shape, dtype, accept)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return File(tmp_path_factory.mktemp("activations") / "cache")


@st.composite
def contents(draw, file):
    """A manifest and rows of which something is changed, gone, doubled or in another order."""
    lines = list(file.lines)
    for _ in range(draw(st.integers(0, 2))):
        at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(["swap", "double", "remove"]))
        if what == "swap":
            lines[at], lines[other] = lines[other], lines[at]
        elif what == "double":
            lines.insert(at, lines[other])
        elif len(lines) > 1:
            del lines[at]
    manifest, data = b"".join(lines), file.data
    if draw(st.booleans()):
        manifest = draw(st.none() | changed(manifest) | st.binary(max_size=50))
    if draw(st.booleans()):
        data = draw(st.none() | changed(data) | st.binary(max_size=50) | st.just(bytes(len(data))))
    return manifest, data


def check_then_fill(file, tally):
    found = file.open()
    if found is None:
        tally.count("nothing")
    else:
        np.testing.assert_array_equal(found, file.rows)
        assert file.bad == BAD
        tally.count("the rows")
        del found
    fill(file.folder, file.rows)
    np.testing.assert_array_equal(file.open(), file.rows)
    assert file.bad == BAD
    assert [place.name for place in file.folder.iterdir()] == ["k"]


@fuzzed
@given(st.data())
def test_a_published_file(file, tally, data):
    file.put(*data.draw(contents(file)))
    check_then_fill(file, tally)


@fuzzed
@given(st.data())
def test_what_an_interrupted_fill_left(file, tally, data):
    manifest, rows = data.draw(contents(file))
    manifest = manifest and manifest[: data.draw(st.integers(0, len(manifest)))]
    file.put(manifest, rows, "k.tmp-00000000")
    check_then_fill(file, tally)


@fuzzed
@given(
    key=st.sampled_from(["k", "K", "l"]),
    n=st.integers(0, 30),
    f=st.integers(0, 10),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_another_question(file, tally, key, n, f, dtype):
    """A file answers for its own key, shape and type only, even where the sizes agree."""
    file.put(file.manifest, file.data)
    found = file.open(key, (n, f), dtype)
    if (key, n, f, dtype) == ("k", *SHAPE, DTYPE):
        np.testing.assert_array_equal(found, file.rows)
        return tally.count("the rows")
    assert found is None
    return tally.count("nothing")


numbers = st.integers(-2, 25) | st.sampled_from([2**31, 2**63, 10**30])


@fuzzed
@given(
    shape=st.tuples(numbers, numbers),
    dtype=st.sampled_from(["float16", "int64"]),
    blocks=st.lists(st.tuples(numbers, numbers, numbers), max_size=4),
)
def test_blocks_that_were_never_written(file, tally, shape, dtype, blocks):
    """Lines whose checksums agree but say anything: no row that was not written is ever served."""
    said = header_of("k", SHAPE, DTYPE)
    lines = [header_line(said | {"shape": shape, "dtype": dtype} if len(blocks) % 2 else said)]
    lines += [block_line(Block(first, rows, crc, {})) for first, rows, crc in blocks]
    file.put(b"".join(lines), file.data)
    assert file.open() is None
    tally.count("nothing")
