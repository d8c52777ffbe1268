"""Files are written whole or not at all, and errors name what the user knows."""

import pytest

from dtp.errors import told_by_the_system
from dtp.system.files import replaced_when_whole, write_atomically


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "nowhere" / "a.json", "{}")
    assert missing.value.filename == str(tmp_path / "nowhere" / "a.json")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as taken:
        write_atomically(tmp_path / "folder", "{}")
    said = told_by_the_system(taken.value)
    assert said.startswith(f"{tmp_path / 'folder'}: cannot be read or written (Is a directory)")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    # Nor where the temporary file cannot even be removed, as on a disk that only reads.
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as inside:
        write_atomically(tmp_path / "file" / "a.json", "{}")
    assert inside.value.filename == str(tmp_path / "file" / "a.json")


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as other, replaced_when_whole(tmp_path / "a.json"):
        (tmp_path / "source").read_bytes()
    assert other.value.filename == str(tmp_path / "source")
    assert list(tmp_path.iterdir()) == []
