"""Python in a process of its own, with the tests' helpers at hand."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PATIENCE = 500  # seconds until a hang is taken for granted: others may keep the machine ten times as busy
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}


def start(script, *args):
    """A running process."""
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(script, *args):
    """What a process that must succeed prints."""
    process = start(script, *args)
    try:
        out, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return out.splitlines()


def has_ended(pid, seconds=20):
    """Waits until a process is gone, or would be if whoever inherits it looked after it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def wait_until(condition, seconds=10):
    """Waits for what comes late on a busy machine, such as the end of a thread in the system's list of them."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)


def send_when_caught(number, seconds):
    """Sends a signal to this process some time after a handler of its own waits for it."""
    before = signal.getsignal(number)

    def wait_and_send():
        until = time.monotonic() + 60
        while signal.getsignal(number) is before and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(seconds)
        signal.raise_signal(number)

    threading.Thread(target=wait_and_send, daemon=True).start()
