"""The command line: ``fastclf COMMAND``. What a command is called, and its options, are the words of the Python calls.

Exit codes: 0 all went well; 1 an error, printed in one line, or something to look at (`check`, `audit`, an image that
cannot be decoded); 2 a command that makes no sense; 130 Ctrl-C;
141 whoever reads the output has closed it; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.metadata import version

from fastclf import ranks
from fastclf.errors import FastclfError
from fastclf.report import command_line, show
from fastclf.threads import available_processors

COMMANDS = {
    "train": "train a classifier on labelled images, into a run folder",
    "predict": "predict images with a saved model",
    "eval": "how good a saved model is on labelled images",
    "export": "write a saved model as one file, for use without fastclf",
    "verify": "check an exported file against the answers in it",
    "check": "look for what is odd about a data set",
    "audit": "find labels that are probably wrong, near duplicates and outliers",
    "sweep": "try settings of the head on folds of the training images",
    "compare": "compare pretrained networks on folds of the training images",
    "curve": "how accuracy grows with the number of training images, and what more would add",
    "cache": "list or prune cached activations and decoded copies",
    "env": "what fastclf runs on here: versions, processor, native code, GPU",
    "demo": "the whole lesson, on handwritten digits or on your own images",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (the process's own by default) names; return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    named = next((word for word in given if word in COMMANDS), "")
    with command_line(options=named != "demo"):  # which shows Python calls
        try:
            return _run(named, given)
        except KeyboardInterrupt as interrupt:
            return _failed(named, str(interrupt) or "stopped", 130)
        except BrokenPipeError:  # whoever reads our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            known = error.filename is not None and error.strerror is not None
            return _failed(named, f"{error.filename}: {error.strerror}" if known else str(error), 1)
        except (FastclfError, ValueError) as error:
            return _failed(named, str(error), 1)


def _run(named: str, given: Sequence[str]) -> int:
    """Run the command that is named, the only one to be imported."""
    parser = _parser([named])
    arguments = parser.parse_args(given)
    if arguments.command is None:
        show(parser.format_help())
        return 0
    command = import_module(f"fastclf.commands.{named}")
    processes = getattr(arguments, "nproc", 1)
    if processes != 1 and ranks.size() == 1:
        return _in_processes(named, processes, given)
    return int(command.run(arguments) or 0)


def _in_processes(command: str, processes: int, argv: Sequence[str]) -> int:
    """Run a command in several processes that torchrun starts; return its exit code."""
    if processes < 1:
        return _failed(command, f"--nproc must be at least 1, got {processes}", 2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--nproc")
    _, argv = own.parse_known_args(argv)  # without it, which torchrun would take for one of its own
    threads = max(1, available_processors() // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    with subprocess.Popen([*torchrun, "-m", "fastclf", *argv], env=environment) as run:
        while True:
            try:
                return run.wait()
            except KeyboardInterrupt:  # torchrun has got it too, and waits for the processes
                continue


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options that have a value by default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, "", False) or not action.option_strings
        return action.help if plain else super()._get_help_string(action)


def _parser(known: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser; of commands that are not in ``known``, which are not imported, it knows the name alone."""
    parser = argparse.ArgumentParser(
        prog="fastclf",
        description="From a folder of images to a trustworthy classifier.",
        epilog="fastclf COMMAND --help describes a command. Example: fastclf train photos -o run && "
        "fastclf predict run new/*.jpg --out predictions.csv",
    )
    parser.add_argument("--version", action="version", version=f"fastclf {version('fastclf')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, what in COMMANDS.items():
        described = f"{what[0].upper()}{what[1:]}."
        own = commands.add_parser(name, help=what, description=described, formatter_class=_Help)
        if name in known:
            import_module(f"fastclf.commands.{name}").add_arguments(own)
    return parser


def _failed(command: str, text: str, code: int) -> int:
    show(f"fastclf {command}: {_without_calls(text.removeprefix(f'{command}: '))}", sys.stderr)
    return code


def _without_calls(text: str) -> str:
    """Return a message without the Python calls that it begins with, which who runs a command has not made."""
    said, colon, rest = text.partition(": ")
    return _without_calls(rest) if colon and _is_call(said) else text


def _is_call(name: str) -> bool:
    """Return whether a name is that of a class of this package, a public function, or a method of a public class."""
    if not name.isidentifier() or "torch" not in sys.modules:  # without which no call has been made
        return False
    own = [vars(module) for key, module in [*sys.modules.items()] if key.partition(".")[0] == "fastclf"]
    public = vars(import_module("fastclf.public"))
    classes = [value for key, value in public.items() if key in public["__all__"] and isinstance(value, type)]
    methods = (getattr(cls, name, None) for cls in classes if not name.startswith("_"))
    return (
        any(isinstance(module.get(name), type) for module in own)
        or (name in public["__all__"] and callable(public[name]))
        or any(map(callable, methods))
    )
