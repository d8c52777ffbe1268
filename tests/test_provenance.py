"""What results were made with."""

import platform

import torch

from dtp import __version__, provenance


def test_versions_and_hardware_are_those_of_this_process():
    found = provenance.versions()
    assert (found["dtp"], found["torch"]) == (__version__, torch.__version__)
    assert found["python"] == platform.python_version() and found["lightning"]
    assert provenance.hardware()["threads"] == torch.get_num_threads()
    assert provenance.cpu_name().endswith(" cores")


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == ""
