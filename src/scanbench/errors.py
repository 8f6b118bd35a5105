"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Something a user can mend: bad input, bad config, a missing file.

    The message is one line that names the file or key and says what to do about it. The command
    line prints it without a traceback and exits with status 2. Whatever else escapes is a bug.
    """
