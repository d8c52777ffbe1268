"""What results were made with."""

import platform
import shlex

import pytest
import torch

from dtp import __version__
from dtp.cli.arguments import parse
from dtp.run import provenance
from dtp.run.folder import NOT_SAVED, Run, differing_options, write_config


def test_versions_and_hardware_are_those_of_this_process():
    found = provenance.versions()
    assert (found["dtp"], found["torch"]) == (__version__, torch.__version__)
    assert found["python"] == platform.python_version() and found["lightning"]
    assert provenance.hardware()["threads"] == torch.get_num_threads()
    assert provenance.cpu_name().endswith(" cores")


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == ""


@pytest.mark.parametrize(
    "text, shown",
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://me:s/e@c ret@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("--store=redis://:secret@host:6379", "--store=redis://:***@host:6379"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("https://host/x?access_token=secret", "https://host/x?access_token=***"),
        ("https://me@host:80/db", "https://me@host:80/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("my:data@home", "my:data@home"),
    ],
)
def test_passwords_of_urls_are_masked(text, shown):
    assert provenance.masked(text) == shown
    assert provenance.recorded(["python", text]) == shlex.join(["python", shown])


def test_no_file_of_a_run_keeps_a_password(tmp_path):
    url = "https://me:secret@host/data"
    config = parse(["--data-dir", url])
    write_config(Run(tmp_path), config, provenance.recorded(["python", "main.py", "--data-dir", url]))
    text = (tmp_path / "config.yaml").read_text()
    assert "secret" not in text and text.count("https://me:***@host/data") == 3
    # What an earlier version has kept is the same configuration.
    earlier = {name: value for name, value in config.as_dict().items() if name not in NOT_SAVED}
    assert differing_options(earlier, config) == {}
