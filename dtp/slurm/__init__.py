"""Scripts for a SLURM cluster: ``dtp slurm NAME`` prints one, self-contained; a checkout has them in ``slurm/``."""

import re
from pathlib import Path

from dtp.errors import UserError, did_you_mean, ended

_HERE = Path(__file__).parent
# What is sourced or run otherwise.
_NO_JOBS = ("common", "local_cluster")
_SOURCED = re.compile(r"^# SLURM runs a copy of this script.*?^source \"\$common\"\n", re.MULTILINE | re.DOTALL)


def names() -> list[str]:
    """The scripts there are."""
    return sorted(path.stem for path in _HERE.glob("*.sh") if path.stem not in _NO_JOBS)


def script(name: str) -> str:
    """The text of a script, with all that it needs.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        hint = did_you_mean(name, names())
        raise UserError(ended(f"dtp slurm {name}: expected one of {', '.join(names())}, found {name!r}{hint}"))
    common = (_HERE / "common.sh").read_text(encoding="utf-8")
    # Behind a function, for the words of the text are no pattern.
    return _SOURCED.sub(lambda found: common, (_HERE / f"{name}.sh").read_text(encoding="utf-8"), count=1)
