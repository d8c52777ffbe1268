"""What stands for a mistake of the user rather than of the program."""

import errno

# What a full disk, a quota, a limit of file sizes and a disk that only reads say.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one sentence (or two) that says what was expected, what was found and what to do. The command line
    prints it to stderr without a traceback and exits with status 2.
    """


class Diverged(UserError):
    """Training came to numbers that are not finite, and would do so again with the same options."""
