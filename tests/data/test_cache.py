import os
from pathlib import Path

import pytest

from dtp.data.cache import cache_folder, data_folder, fingerprint, written_atomically
from dtp.errors import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), written_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_system_that_refuses_is_the_users_to_mend(tmp_path):
    with (
        pytest.raises(UserError, match=r"\(No space left\); free space"),
        written_atomically(tmp_path / "new" / "folder" / "file"),
    ):
        raise OSError("No space left")


def test_a_fingerprint_follows_names_sizes_times_and_settings(tmp_path):
    def found(name="a", text="1", time=5, setting=32):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, ns=(time, time))
        return fingerprint(tmp_path, [name], setting)

    others = found(name="b"), found(text="12"), found(time=6), found(setting=64)
    assert found() == found() and len({found(), *others}) == 5


def test_a_folder_that_cannot_be_written_to_is_cached_in_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cache_folder(tmp_path).parent == tmp_path / "cache" / "dtp"
    # Folders of one name, in two places.
    found = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        found.append(cache_folder(Path("data")))
        assert found[-1] == cache_folder(tmp_path / place / "data")
    assert found[0] != found[1]


def test_the_data_folder_is_the_first_there_is(tmp_path, monkeypatch):
    """Named; by DTP_DATA_DIR; data; torch's cache, as torch.hub documents it."""
    monkeypatch.chdir(tmp_path)
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert data_folder("auto") == Path("/home/me/.cache/torch/datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder("auto") == Path("/cache/torch/datasets")
    monkeypatch.setenv("TORCH_HOME", "~/torch")
    (tmp_path / "data").touch()
    assert data_folder("auto") == Path("/home/me/torch/datasets")
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    assert data_folder("auto") == Path("data")
    monkeypatch.setenv("DTP_DATA_DIR", "~/mine")
    assert data_folder("auto") == Path("/home/me/mine")
    assert data_folder("elsewhere") == Path("elsewhere") and data_folder("~/here") == Path("/home/me/here")


def nobody():
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_nothing_is_cached_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert cache_folder(tmp_path / "unwritable") == tmp_path / "unwritable"


def test_torchs_cache_that_is_named_needs_no_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DTP_DATA_DIR", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert data_folder("auto") == Path("data")
    monkeypatch.setenv("TORCH_HOME", "/torch")
    assert data_folder("auto") == Path("/torch/datasets")
