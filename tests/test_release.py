"""The places that name the version."""

import re

import yaml

import dtp
from tests.runs import ROOT


def test_all_places_name_the_same_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == dtp.__version__
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [head for head in heads if head != "Unreleased"]
    assert heads == ["Unreleased"] * heads.count("Unreleased") + released
    # None before the first release, whose version the package has already.
    assert not released or re.fullmatch(rf"{re.escape(dtp.__version__)} \(\d{{4}}-\d\d-\d\d\)", released[0])
