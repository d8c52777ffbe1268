"""The places that name the version."""

import re

import yaml

import dtp
from tests.runs import ROOT


def test_all_places_name_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dtp.__version__
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = [head for head in heads if head != "Unreleased"][:1]
    # Before the first release, whose version the package has already, there is no other head.
    assert heads[0] in ("Unreleased", *newest) and heads.count("Unreleased") <= 1
    assert newest in ([], [f"{dtp.__version__} ({citation['date-released']})"])
