import pytest
from fuzzing import Tally


@pytest.fixture
def tally(request):
    """Counts what came of the inputs of a test, and prints it at the end."""
    counts = Tally(request.node.name)
    yield counts
    print(f"\n{counts}")
    assert counts.outcomes.total() > 0
