"""Which images a folder holds: the same for a copy, another for any other."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS as OF_TORCHVISION

from dtp.data.image_files import IMG_EXTENSIONS, images_in
from dtp.data.imagefolder import find_images


@pytest.fixture(autouse=True)
def anew():
    images_in.cache_clear()


def test_the_endings_of_images_are_those_of_torchvision():
    assert IMG_EXTENSIONS == OF_TORCHVISION


def test_a_copy_elsewhere_holds_the_same_images_whatever_else_lies_there(tmp_path, write_folder):
    write_folder(tmp_path / "a")
    # A name that is no text.
    os.rename(tmp_path / "a" / "cat" / "001.png", os.fsencode(tmp_path / "a" / "cat") + b"/\xff.png")
    shutil.copytree(tmp_path / "a", tmp_path / "other" / "b")
    (tmp_path / "other" / "b" / "cat" / ".seen.png").touch()
    (tmp_path / "other" / "b" / ".thumbnails").mkdir()
    (tmp_path / "other" / "b" / ".thumbnails" / "000.png").touch()
    (tmp_path / "other" / "b" / "notes.txt").touch()
    # Beside the class folders.
    (tmp_path / "other" / "b" / "preview.png").touch()
    found = images_in(tmp_path / "a")
    assert found.startswith("20 images of 2 classes ") and images_in(tmp_path / "other" / "b") == found


def test_another_class_name_size_or_part_is_other_images(tmp_path, write_folder):
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "classes", classes=("cat", "cow"))
    write_folder(tmp_path / "names")
    (tmp_path / "names" / "cat" / "000.png").rename(tmp_path / "names" / "cat" / "zero.png")
    write_folder(tmp_path / "sizes")
    Image.effect_noise((8, 8), 9).save(tmp_path / "sizes" / "cat" / "000.png")
    for part in ("train", "test", "more"):
        write_folder(tmp_path / "parts" / part)
    found = {name: images_in(tmp_path / name) for name in ("a", "classes", "names", "sizes", "parts")}
    assert len(set(found.values())) == 5
    # Beside the parts nothing is read.
    assert found["parts"].startswith("40 images of 2 classes ")


def test_what_is_read_is_what_is_recorded(tmp_path, write_folder):
    write_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "b" / name).symlink_to(tmp_path / "a" / name)
    assert images_in(tmp_path / "b") == images_in(tmp_path / "a")
    # A hidden folder within a class is read.
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    shutil.copytree(tmp_path / "a" / "cat", tmp_path / "c" / "cat" / ".more")
    read = sum(len(files.names) for files in find_images(tmp_path / "c")[1].values())
    assert read == 30 and images_in(tmp_path / "c").startswith(f"{read} images ")


def test_links_that_would_be_refused_are_not_followed(tmp_path):
    # Each folder has two links to the other: without end, and twice as many at each level.
    for here, other in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        (tmp_path / here / "0.png").touch()
        for link in ("x", "y"):
            (tmp_path / here / link).symlink_to(Path("..", other))
    assert images_in(tmp_path) == ""


def test_a_folder_without_images_or_none_holds_nothing(tmp_path):
    assert images_in(tmp_path) == images_in(tmp_path / "nowhere") == ""
