"""Python in a process of its own, with the tests' helpers at hand."""

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}


def start(script, *args):
    """A running process."""
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(script, *args, timeout=120):
    """What a process that must succeed prints."""
    process = start(script, *args)
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return out.splitlines()
