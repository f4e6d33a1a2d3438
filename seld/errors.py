"""The one error users see: what is wrong, where, and what was expected."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        where: file, option or setting group that holds the bad value.
        field: column, key or property within it.
        value: what was found there.
        expected: what would have been accepted.
    """

    def __init__(self, where: str | Path, field: str, value: object, expected: str) -> None:
        super().__init__(where, field, value, expected)
        self.where = str(where)
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.where}: {self.field} is {self.value!r}, expected {self.expected}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other input error.

    Abbreviated options are refused: code that passes a command line on to another process looks
    its options up by their full names.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Called by argparse for whatever it cannot parse."""
        raise InputError("command line", "argument", message, f"what {self.prog} --help says")


def exit_on_input_error(main: Callable[[], int | None]) -> None:
    """Run a command; an :class:`InputError` becomes one line on stderr and exit code 2."""
    try:
        code = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever read the output, as `head` does, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
