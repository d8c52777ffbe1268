import errno
import os

import numpy as np
import pytest
from PIL import Image

from dtp.cli.train import main
from dtp.data import imagefolder
from dtp.data.imagefolder import ImageFolderData, decode
from dtp.data.options import ImageFolderOptions
from dtp.errors import UserError
from tests.data.files import write_folder


def folder(root, **options) -> ImageFolderData:
    data = ImageFolderData(ImageFolderOptions(str(root), **({"image_size": 8} | options)))
    data.prepare_data()
    data.setup()
    return data


def sizes(data) -> list[int]:
    return [len(data._parts[part]) for part in ("train", "val", "test")]


def test_train_and_test_folders_hold_out_a_tenth(tmp_path, write_folder):
    write_folder(tmp_path / "train", count=20)
    write_folder(tmp_path / "test", count=5)
    data = folder(tmp_path)
    assert sizes(data) == [36, 4, 10]
    assert (data.num_classes, data.input_shape, data.crop_padding) == (2, (3, 8, 8), 1)


def test_a_val_folder_is_the_validation_part_unless_a_size_is_given(tmp_path, write_folder):
    for part, count in (("train", 10), ("val", 3), ("test", 5)):
        write_folder(tmp_path / part, count=count)
    assert sizes(folder(tmp_path)) == [20, 6, 10]
    assert sizes(folder(tmp_path, val_size=4.0)) == [16, 4, 10]


def test_class_folders_alone_give_a_fixed_stratified_test_part(tmp_path, write_folder):
    write_folder(tmp_path, count=20)
    data = folder(tmp_path)
    assert sizes(data) == [32, 4, 4]
    labels = data.load_test()[1]
    assert np.bincount(labels).tolist() == [2, 2]
    assert data._files["test"].names == folder(tmp_path, split_seed=1)._files["test"].names


def test_images_come_sorted_by_class_and_name_with_their_own_pixels(tmp_path, write_folder):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    images, labels = folder(tmp_path).load_train()
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert images[:, 0, 0, 0].tolist() == [*range(10), *range(100, 110)]
    assert images[0, :, 0, 0].tolist() == [0, 20, 200]


def test_images_too_many_for_memory_are_decoded_when_needed(tmp_path, write_folder, monkeypatch):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    kept = folder(tmp_path).load_train()[0]
    # Of both parts, of 20 images each.
    monkeypatch.setattr(imagefolder, "MEMORY_LIMIT", 40 * 3 * 8 * 8 - 1)
    data = folder(tmp_path, batch_size=18)
    lazy = data.load_train()[0]
    assert isinstance(lazy, imagefolder.ImageFiles)
    assert np.array_equal(lazy[np.array([3, 17])], kept[[3, 17]])
    assert next(iter(data.train_dataloader()))[0].shape == (18, 3, 8, 8)


@pytest.mark.parametrize("size", [(16, 8), (8, 16), (31, 47), (5, 9), (8, 8)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_any_image_becomes_rgb_of_the_size_asked_for(tmp_path, size, mode):
    Image.new(mode, size).save(tmp_path / "image.png")
    pixels = decode(tmp_path / "image.png", 8)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.pgm"])
def test_grey_images_of_16_bits_are_scaled_to_8(tmp_path, name):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / name)
    assert (decode(tmp_path / name, 16) == levels).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 200, dtype=kind)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match="image.tif: .*no known range; save it with 8 or 16 bits"):
        decode(tmp_path / "image.tif", 8)


def test_the_centre_is_kept(tmp_path):
    image = np.zeros((8, 24, 3), dtype=np.uint8)
    image[:, 8:16] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    assert (decode(tmp_path / "image.png", 8) == 255).all()


def test_of_a_larger_image_all_is_kept_and_made_smaller(tmp_path):
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[4:12, 4:12] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    found = decode(tmp_path / "image.png", 8)
    assert (found[:, 3:5, 3:5] == 255).all() and not found[:, [0, -1]].any() and not found[..., [0, -1]].any()


def test_statistics_are_those_of_the_training_images_and_follow_the_files(tmp_path, write_folder):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=3)
    data = folder(tmp_path)
    images = data.load_train()[0] / 255
    assert np.allclose(data.statistics[0], images.mean((0, 2, 3)), atol=1e-12)
    assert data.statistics[1][0] == pytest.approx(images[:, 0].std())
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "train" / "dog" / "new.png")
    assert folder(tmp_path).statistics[0][0] > data.statistics[0][0]


def test_statistics_are_computed_once(tmp_path, write_folder, monkeypatch):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    first = folder(tmp_path).statistics
    monkeypatch.setattr(imagefolder, "compute_statistics", None)
    assert folder(tmp_path).statistics == first


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_broken_image_is_named_before_training(tmp_path, write_folder, content):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    path = tmp_path / "train" / "dog" / "004.png"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    data = ImageFolderData(ImageFolderOptions(str(tmp_path), image_size=8))
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        data.prepare_data()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", ["val", "test"])
def test_broken_images_to_evaluate_are_named_before_training_and_looked_for_once(
    tmp_path, write_folder, monkeypatch, part
):
    monkeypatch.setattr(imagefolder, "MEMORY_LIMIT", 0)
    for name in ("train", "val", "test"):
        write_folder(tmp_path / name)
    path = tmp_path / part / "dog" / "004.png"
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"{path}: .*cannot be decoded"):
        ImageFolderData(ImageFolderOptions(str(tmp_path), image_size=8)).prepare_data()
    path.write_bytes(whole)
    folder(tmp_path)
    monkeypatch.setattr(imagefolder, "decode", None)
    folder(tmp_path)


def test_nothing_is_seen_of_what_decoders_warn_of(tmp_path, monkeypatch, write_folder, recwarn):
    write_folder(tmp_path / "images", count=20)
    odd = Image.new("L", (8, 8))
    odd.convert("P").save(tmp_path / "images" / "cat" / "palette.png", transparency=bytes(range(256)))
    odd.save(tmp_path / "images" / "cat" / "metadata.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05damaged")
    monkeypatch.chdir(tmp_path)
    words = "--data imagefolder --data-dir images --image-size 8 --batch-size 4 --max-epochs 1 --widths 8".split()
    assert main([*words, "--limit-train-batches", "1"]) == 0
    assert not recwarn.list


def test_hidden_folders_and_other_files_are_passed_over(tmp_path, write_folder):
    write_folder(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("meow")
    # As Emacs marks a file that somebody edits.
    for name in ("more.txt", ".#notes"):
        (tmp_path / "cat" / name).symlink_to("gone")
    assert folder(tmp_path).num_classes == 2


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("cat/all", "..", "cat/all is a link to a folder"),
        ("cat/again", ".", "cat/again is a link to a folder"),
        ("cat/more", "../dog", "cat/more is a link to a folder"),
        ("cat/x.png", "../dog/000.png", "cat/x.png is a link out of its class folder"),
        ("cat/x.png", "../cat-b/000.png", "cat/x.png is a link out of its class folder"),
        ("cat/x.png", "gone.png", "cat/x.png is a link to gone.png, which is not there"),
        ("cat/some", "gone", "cat/some is a link to gone, which is not there"),
        ("cow", "gone", "cow is a link to gone, which is not there"),
        ("003.cow", "gone", "003.cow is a link to gone, which is not there"),
        ("val", "gone", "val is a link to gone, which is not there"),
        ("all", ".", "all is a link to .*, which holds all classes"),
        ("outside", "..", "outside is a link to .*, which holds all classes"),
        ("kitten", "cat", "kitten is or lies in .*cat"),
        ("part", "cat/part", "part is or lies in .*cat"),
        ("cat/x.png", "x.png", "cat/x.png: cannot be read"),
    ],
)
def test_links_by_which_images_count_twice_or_for_others_are_refused(tmp_path, write_folder, link, target, words):
    root = tmp_path / "images"
    # By its letters cat-b lies between cat and cat/part.
    write_folder(root, classes=("cat", "cat-b", "dog"))
    (root / "cat" / "part").mkdir()
    (root / link).symlink_to(target)
    with pytest.raises(UserError, match=words):
        imagefolder.find_images(root)


@pytest.mark.parametrize("of_train, of_test", [("../test", "cat"), ("../more", "../train/dog")])
def test_a_class_folder_that_is_another_one_or_lies_in_it_is_refused_in_another_part_too(
    tmp_path, write_folder, of_train, of_test
):
    for part in ("train", "test"):
        write_folder(tmp_path / part)
    write_folder(tmp_path, classes=("more",))
    (tmp_path / "train" / "x").symlink_to(of_train)
    (tmp_path / "test" / "x").symlink_to(of_test)
    with pytest.raises(UserError, match="is or lies in"):
        imagefolder.find_images(tmp_path)


def test_links_to_class_folders_parts_and_files_beside_are_followed(tmp_path, write_folder):
    # One name begins as another, and as that of the folder of links.
    every, some = tmp_path / "all", tmp_path / "all" / "cats"
    write_folder(every, classes=("cat", "cat-b", "dog"))
    for part in ("train", "test"):
        (some / part).mkdir(parents=True)
        for name in ("cat", "cat-b"):
            (some / part / name).symlink_to(every / name)
    (some / "val").symlink_to("test")
    (every / "cat" / "x.png").symlink_to("000.png")
    found = imagefolder.find_images(some)[1]
    assert {part: len(files.names) for part, files in found.items()} == {"train": 21, "val": 21, "test": 21}


def test_only_regular_files_are_images(tmp_path, write_folder):
    write_folder(tmp_path)
    os.mkfifo(tmp_path / "cat" / "x.png")
    (tmp_path / "cat" / "y.png").mkdir()
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / "000.PNG")
    assert sum(len(files.names) for files in imagefolder.find_images(tmp_path)[1].values()) == 20


def test_a_part_that_is_a_link_to_nothing_is_refused(tmp_path, write_folder):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    (tmp_path / "val").symlink_to("gone")
    with pytest.raises(UserError, match="val is a link to gone, which is not there"):
        imagefolder.find_images(tmp_path)


@pytest.mark.parametrize("name", ["images", "dog"])
def test_a_folder_that_cannot_be_read_is_not_called_empty(tmp_path, write_folder, monkeypatch, name):
    write_folder(tmp_path / "images")
    scan = os.scandir

    def refuse(path):
        # To root, nothing is forbidden.
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{name}: cannot be read .Permission denied"):
        imagefolder.find_images(tmp_path / "images")


def test_parts_with_other_classes_are_refused(tmp_path, write_folder):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes=("cat", "cow"))
    with pytest.raises(UserError, match="same classes.*cow"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: os.rmdir(root), "found no folder.*--data-dir"),
        (lambda root: None, "class folders.*found none.*--data-dir"),
        (lambda root: (root / "train").mkdir(), "both train and test.*found only train"),
        (lambda root: (root / "test").mkdir(), "both train and test.*found only test"),
        (lambda root: (root / "cat").mkdir(), "expected images.*found none"),
        (lambda root: write_folder(root, classes=("cat",), count=4), "at least 10 images in .*, found 4"),
    ],
)
def test_a_folder_of_another_form_is_refused(tmp_path, make, words):
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=words):
        folder(root)


def test_no_pixels_are_refused():
    with pytest.raises(UserError, match="--image-size: expected a number from 1 to 10000 .pixels., found 0"):
        ImageFolderData(ImageFolderOptions(image_size=0))


def test_images_are_decoded_once_and_again_where_a_file_has_changed(tmp_path, write_folder, monkeypatch):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    first = folder(tmp_path).load_train()[0]
    with monkeypatch.context() as patch:
        patch.setattr(imagefolder, "decode", None)
        assert np.array_equal(folder(tmp_path).load_train()[0], first)
    changed = next((tmp_path / "train").glob("*/*"))
    Image.new("RGB", (8, 8), (7, 7, 7)).save(changed)
    os.utime(changed, (1, 1))
    assert (folder(tmp_path).load_train()[0] != first).any()
    assert len(list(tmp_path.glob(".dtp-images-train-*.npy"))) == 1


# Cut off, and damaged in the pixels and in the header, of which numpy says neither OSError nor ValueError, or nothing.
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:200],
        *(lambda whole, i=i: whole[:i] + b"\1" + whole[i + 1 :] for i in (200, 8)),
        lambda whole: whole.replace(b"|u1", b"|i1"),
        lambda whole: whole.replace(b" 8, 8)", b" 4,16)"),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path, write_folder, damage):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    first = folder(tmp_path).load_train()[0]
    (cache,) = tmp_path.glob(".dtp-images-train-*.npy")
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    assert np.array_equal(folder(tmp_path).load_train()[0], first)
    assert cache.read_bytes() == whole


def test_images_that_cannot_be_kept_for_later_runs_are_read_all_the_same(tmp_path, write_folder, monkeypatch):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    (tmp_path / "file").touch()
    monkeypatch.setattr(imagefolder, "cache_folder", lambda data_dir: data_dir / "file")
    assert folder(tmp_path).load_train()[0][:, 0, 0, 0].tolist() == [*range(10), *range(100, 110)]


def test_many_images_are_fetched_once_each_in_order(monkeypatch):
    monkeypatch.setattr(imagefolder, "available_cores", lambda: 1)
    images = np.arange(1300, dtype=np.uint16).reshape(-1, 1, 1, 1)
    assert np.array_equal(np.concatenate(list(imagefolder._chunks(images))), images)
