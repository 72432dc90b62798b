import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Layers this small cost more to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
