"""Names: a list of file names in one buffer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclf.data.sources.names import Names

names = st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)


@given(st.lists(names), st.slices(6))
def test_equals_a_list(given_names, part):
    ours = Names(given_names)
    assert len(ours) == len(given_names)
    assert list(ours) == given_names
    assert ours[part] == given_names[part]
    for i in range(-len(ours), len(ours)):
        assert ours[i] == given_names[i]
    for i in (len(ours), -len(ours) - 1):
        with pytest.raises(IndexError):
            ours[i]
    for name in given_names:
        assert ours.index(name) == given_names.index(name)
    assert "no such name" not in ours


def test_is_shown_in_short():
    assert repr(Names(["a", "b"])) == "['a', 'b']"
    assert repr(Names(map(str, range(1000)))) == "['0', '1', '2', ... 1,000 names]"
