"""Which of several errors that arose from each other tells why."""

import errno
import os

import pytest

from dtp.errors import all_in_turn, first_reason, told_by_the_system


def raised(*errors, hidden=()):
    """The last of ``errors``, each raised while the one before was handled; from None where it is in ``hidden``."""
    try:
        if len(errors) > 1:
            try:
                raise raised(*errors[:-1], hidden=hidden)
            except Exception:
                if errors[-1] in hidden:
                    raise errors[-1] from None
                raise errors[-1]  # noqa: B904
        raise errors[-1]
    except Exception as error:
        return error


MISSING, WORDS, LATER = KeyError("x"), RuntimeError("no kernel for this.\nDetails"), RuntimeError("an error before")


@pytest.mark.parametrize(
    ("errors", "hidden", "reason"),
    [
        ([WORDS], (), "no kernel for this"),
        ([WORDS, LATER], (), "no kernel for this"),
        ([MISSING, WORDS, LATER], (), "no kernel for this"),
        ([LATER, WORDS], (WORDS,), "no kernel for this"),
        ([RuntimeError()], (), "RuntimeError"),
    ],
    ids=["alone", "hidden by a later one", "raised in place of another kind", "instead of an earlier one", "silent"],
)
def test_the_reason_is_what_the_first_of_its_kind_says(errors, hidden, reason):
    for error in errors:
        error.__context__, error.__suppress_context__ = None, False
    assert first_reason(raised(*errors, hidden=hidden)) == reason


def test_what_was_being_handled_before_is_no_part_of_it():
    before, error = RuntimeError("of old"), RuntimeError("new")
    assert all_in_turn(raised(before, error)) == [error, before]
    assert all_in_turn(error, before) == [error]


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "make room, then try again"), (errno.EROFS, "give another path")]
)
def test_room_is_asked_for_where_room_helps(number, advice):
    assert advice in told_by_the_system(OSError(number, os.strerror(number), "a.json"))
