"""Damaged images of every format and kind: no crash, no hang, never other pixels than Pillow's."""

import numpy as np
import pytest
from fuzzing import Tally, changed, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from image_kinds import expected, kinds

from fastclf.data.bad_images import MAX_PIXELS
from fastclf.data.decode import process as decode_process
from fastclf.data.decode.graphs import decode
from fastclf.data.decode.process import CRASHED, HUNG
from fastclf.data.sources.files import FileSource
from fastclf.data.validation.scan_cache import scan_cache
from fastclf.data.validation.verified import VerifiedImages


@st.composite
def damaged(draw):
    """The name of a kind, and its bytes: as they are, cut off, or changed, mostly near the beginning."""
    name = draw(st.sampled_from(sorted(kinds())))
    content = kinds()[name]
    near = draw(st.sampled_from([30, 300, len(content)]))
    how = draw(st.sampled_from(["whole", "cut", "changed", "changed", "changed near the beginning"]))
    if how == "cut":
        content = content[: draw(st.integers(0, len(content) - 1))]
    elif how == "changed":
        content = draw(changed(content))
    elif how != "whole":
        content = draw(changed(content[:near])) + content[near:]
    return name, content


@pytest.fixture(scope="module")
def tallies():
    counts = {}
    yield counts
    for tally in counts.values():
        print(tally)


def test_damaged_images(tmp_path_factory, tallies, monkeypatch):
    folder = tmp_path_factory.mktemp("images")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(decode_process, "_HANGS", 60.0)
    known = scan_cache(folder)  # for as long as the test runs

    @fuzzed
    @given(damaged())
    def check(case):
        name, content = case
        tally = tallies.setdefault(name.rsplit(".")[-1], Tally(name.rsplit(".")[-1]))
        file = folder / name
        file.write_bytes(content)
        images = VerifiedImages(FileSource(folder, [name]), 2)
        why = images.bad([0], MAX_PIXELS).get(0)
        assert why not in (CRASHED, HUNG)
        want = expected(file)
        if why is not None:
            tally.count("refused" if want is None else "refused, though Pillow opens it")
            assert want is None or "grey values" in why or "planes" in why, why
            return
        got = decode(images.encoded(0), by_path=True)
        if want is None:
            tally.count("accepted, though Pillow refuses it")
            return
        tally.count("accepted")
        assert got.shape == want.shape
        if "32 bits" not in name and "lab" not in name:
            assert np.abs(got - want).max() <= 1

    check()
    assert known is scan_cache(folder)
