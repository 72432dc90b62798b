"""Generated inputs: how many, from which seed, and how bytes are damaged.

The same 100 inputs are tried in every run, so that a change that breaks something is to blame for it.
FASTCLF_FUZZ=N tries N new ones, FASTCLF_TEST_SEED brings back those of an earlier run; a failing test prints the
smallest input that Hypothesis finds.
"""

import os
import re
from collections import Counter

import numpy as np
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FASTCLF_FUZZ", 100))
_FRESH = np.random.SeedSequence().entropy % 2**32 if "FASTCLF_FUZZ" in os.environ else 1
SEED = int(os.environ.get("FASTCLF_TEST_SEED", _FRESH))


def fuzzed(test):
    """Runs a test with Hypothesis's ``@given`` on so many inputs; fixtures are made once for all of them."""
    often = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    return seed(SEED)(often(test))


class Tally:
    """What came of the inputs, for the line that a test prints at its end."""

    def __init__(self, name):
        self.name, self.outcomes = name, Counter()

    def count(self, outcome):
        self.outcomes[outcome] += 1

    def refused(self, error, pattern="."):
        """Counts an error; its message must say what is wrong with what."""
        assert re.search(pattern, str(error)), repr(error)[:500]
        self.count(type(error).__name__)

    def __str__(self):
        parts = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())
        return f"{self.name}: {self.outcomes.total():,} inputs (seed {SEED}): {parts}"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", ".", "..", "../x", "a/b", "\0", "\ud800", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw, whole):
    """``whole`` after one to three changes: bytes replaced, put in, taken out, cut off or moved."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["replace", "insert", "remove", "cut", "flip", "move"]))
        piece = draw(st.binary(min_size=1, max_size=9))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            data[at:at] = piece
        elif how == "move":
            moved = data[at : at + draw(st.integers(1, 40))]
            data[at : at + len(moved)] = b""
            to = draw(st.integers(0, len(data)))
            data[to:to] = moved
        else:
            data[at : at + len(piece)] = piece
    return bytes(data)
