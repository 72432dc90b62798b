import json
import zlib

from hypothesis import given
from hypothesis import strategies as st

from fastclf.activations.manifest import Block, block_line, header_line, read_header, read_manifest

HEADER = {"schema": 2, "shape": [12, 3]}
BLOCKS = [Block(0, 5, 123, {}), Block(5, 4, 2**32 - 1, {6: "empty file", 8: "\udcff\n"}), Block(9, 3, 0, {})]
WHOLE = header_line(HEADER) + b"".join(map(block_line, BLOCKS))


def read(tmp, data, header=HEADER):
    (tmp / "m").write_bytes(data)
    return read_manifest(tmp / "m", header)


def test_round_trip(tmp_path):
    assert read(tmp_path, WHOLE) == BLOCKS
    assert read(tmp_path, WHOLE, HEADER | {"schema": 3}) is None
    assert read_header(tmp_path / "m") == HEADER
    assert read_header(tmp_path / "none") is None


def test_cut_anywhere_the_blocks_before_are_read(tmp_path):
    ends = [len(header_line(HEADER))]
    for block in BLOCKS:
        ends.append(ends[-1] + len(block_line(block)))
    for cut in range(len(WHOLE)):
        whole = sum(end <= cut for end in ends)
        assert read(tmp_path, WHOLE[:cut]) == (BLOCKS[: whole - 1] if whole else None)


def test_any_changed_bit_ends_it(tmp_path, rng):
    first = len(header_line(HEADER))
    for bit in {*range(8 * first, 8 * first + 80), *rng.integers(8 * len(WHOLE), size=400).tolist()}:
        data = bytearray(WHOLE)
        data[bit // 8] ^= 1 << bit % 8
        found = read(tmp_path, bytes(data))
        assert found is None if bit < 8 * first else found in (BLOCKS[:0], BLOCKS[:1], BLOCKS[:2])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
likely = st.fixed_dictionaries(
    {key: st.integers(-1, 13) | json_values for key in ("first", "rows", "crc32")}
    | {"bad": st.lists(st.tuples(st.integers(-1, 13), st.text(max_size=3)), max_size=3) | json_values}
)


@given(contents=st.lists(likely | json_values, max_size=4), tail=st.binary(max_size=40))
def test_whatever_lines_say_blocks_follow_each_other(tmp_path_factory, contents, tail):
    def line(content):
        text = json.dumps(content).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    blocks = read(tmp_path_factory.getbasetemp(), header_line(HEADER) + b"".join(map(line, contents)) + tail)
    assert blocks is not None
    at = 0
    for block in blocks:
        assert (block.first, block.rows >= 1, block.first + block.rows <= 12) == (at, True, True)
        assert all(block.first <= row < block.first + block.rows for row in block.bad)
        at += block.rows


@given(data=st.binary(max_size=200))
def test_noise_is_no_manifest(tmp_path_factory, data):
    assert read(tmp_path_factory.getbasetemp(), data) is None


def test_deep_nesting_is_no_manifest(tmp_path):
    text = b"[" * 100_000
    assert read(tmp_path, b"%08x %s\n" % (zlib.crc32(text), text)) is None
