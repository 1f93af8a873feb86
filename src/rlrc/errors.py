"""Bad input, told in one line."""


class UserError(Exception):
    """The user's input is wrong: the message says what and what to do about it.

    The command line prints the message on one line and exits with status 2; Python callers catch it as any exception.
    """
