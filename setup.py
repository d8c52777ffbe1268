"""The package's description, for which pyproject.toml has no words: the README without what lies beside it."""

import re
from pathlib import Path

from setuptools import setup


def description(readme: str) -> str:
    """The README as it reads where the package is all that there is.

    Without pictures and their captions, and with the text of a link in place of one to a file of the repository.
    """
    without_pictures = re.sub(r"!\[[^\]]*\]\([^)]*\)\n\n(\*[^*]+\*\n\n)?", "", readme)
    # Brackets in a text and parentheses in a path come in pairs.
    text, path = r"\[((?:[^\[\]]|\[[^\[\]]*\])+)\]", r"\((?!https?:)(?:[^()]|\([^()]*\))*\)"
    return re.sub(text + path, r"\1", without_pictures)


if __name__ == "__main__":
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(long_description=description(readme), long_description_content_type="text/markdown")
