"""Files are written whole or not at all, and errors name what the user knows."""

import pytest

from dtp.errors import told_by_the_system
from dtp.system.files import write_atomically


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
