"""The one exception that stands for a mistake of the user rather than of the program."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one sentence (or two) that says what was expected, what was found and what to do. The command line
    prints it to stderr without a traceback and exits with status 2.
    """
