"""The one exception that a user is meant to see."""

import difflib
import errno
from collections.abc import Iterable

#: What a command's line about a mistake begins with.
MISTAKE = "scanbench: error: "

#: What its line begins with where the machine failed, and what such errors are.
BROKEN = "scanbench: the machine failed: "
MACHINE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOMEM, errno.ETIMEDOUT, errno.ESTALE)


class UserError(Exception):
    """Something a user can mend: bad input, bad config, a missing file.

    The message is one line that names the file or key and says what to do about it. The command
    line prints it without a traceback and exits with status 2. Whatever else escapes is a bug.
    """


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the closest of `known`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: `1 group`, `2 groups`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, to stand in a one-line message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
