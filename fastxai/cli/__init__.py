"""The command line: ``fastxai demo``, ``explain``, ``attack``, ``bounds``, ``evaluate``, ``study`` and ``train``."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from fastxai.cli import attack, bounds, demo, evaluate, explain, study, train
from fastxai.cli._common import Stopped, UsageError

__all__ = ["main"]

COMMANDS = {
    "demo": demo,
    "explain": explain,
    "attack": attack,
    "bounds": bounds,
    "evaluate": evaluate,
    "study": study,
    "train": train,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the words after ``fastxai``; None reads the process's own.

    Returns:
        0 if all went well, 2 if an argument is wrong, 130 if the user pressed Ctrl-C.

    Raises:
        SystemExit: argparse printed the help, or found an error in the words themselves.

    >>> fastxai.cli.main(["explain", "no-such-photo.png"])
    2
    """
    parser = argparse.ArgumentParser(prog="fastxai", description="Explain a network, and attack the explanation.")
    parser.add_argument("--version", action="version", version=f"fastxai {importlib.metadata.version('fastxai')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    options = parser.parse_args(arguments)
    try:
        COMMANDS[options.command].run(options)
    except UsageError as error:
        print(f"fastxai {options.command}: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"fastxai {options.command}: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"fastxai {options.command}: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0
