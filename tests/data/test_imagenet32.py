import os
import pickle

import numpy as np
import pytest

from dtp.data.imagenet32 import ImageNet32, read_pickle
from dtp.data.images import MappedImages
from dtp.data.options import DataOptions
from dtp.errors import UserError

REPACKED = [f"out_data_val/train_data_batch_{number}" for number in range(1, 11)]


def imagenet32(root, **options) -> ImageNet32:
    data = ImageNet32(DataOptions(str(root), **({"val_size": 40} | options)))
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"train": "Imagenet32_train/", "test": "Imagenet32_val/val_data"},
        {"train": "out_data_train/", "test": REPACKED, "key": "fine_labels"},
        {"protocol": 2},
        {"protocol": 5},
    ],
)
def test_every_layout_is_read_in_the_order_of_its_files(tmp_path, write_imagenet32, layout):
    images, labels = write_imagenet32(tmp_path, **layout)
    read, read_labels = imagenet32(tmp_path).load_train()
    assert np.array_equal(read[np.arange(200)], images)
    assert np.array_equal(read_labels, labels)


def test_labels_count_from_zero_and_there_are_always_1000_classes(tmp_path, write_imagenet32):
    write_imagenet32(tmp_path)
    data = imagenet32(tmp_path)
    assert np.unique(data.load_train()[1]).tolist() == [0, 1, 998, 999]
    assert (data.num_classes, data.input_shape) == (1000, (3, 32, 32))


def test_validation_is_equally_many_of_each_class_and_the_official_validation_set_is_the_test_set(
    tmp_path, write_imagenet32
):
    write_imagenet32(tmp_path)
    parts = imagenet32(tmp_path)._parts
    assert [len(parts[part]) for part in ("train", "val", "test")] == [160, 40, 20]
    assert np.unique(parts["val"].labels[parts["val"].indices], return_counts=True)[1].tolist() == [10] * 4
    assert ImageNet32.val_size == 50 * 1000


def test_pixels_stay_in_a_mapped_file_also_when_sent_to_a_worker(tmp_path, write_imagenet32):
    images, _ = write_imagenet32(tmp_path)
    mapped = imagenet32(tmp_path).load_train()[0]
    assert isinstance(mapped, MappedImages) and isinstance(mapped._array, np.memmap)
    sent = pickle.dumps(mapped)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[np.array([7, 3])], images[[7, 3]])


def test_files_are_converted_once_and_again_when_they_change(tmp_path, write_imagenet32, monkeypatch):
    write_imagenet32(tmp_path)
    imagenet32(tmp_path)
    converted = sorted(path.name for path in tmp_path.glob("dtp-*.npy"))
    assert len(converted) == 4
    with monkeypatch.context() as patch:
        patch.setattr("dtp.data.imagenet32._convert", None)
        imagenet32(tmp_path)
    os.utime(tmp_path / "val_data", ns=(0, 0))
    imagenet32(tmp_path)
    again = sorted(path.name for path in tmp_path.glob("dtp-*.npy"))
    assert len(again) == 4 and len(set(again) & set(converted)) == 2


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_converted_files_that_are_cut_off_or_damaged_are_converted_again(tmp_path, write_imagenet32, kind):
    images, labels = write_imagenet32(tmp_path)
    imagenet32(tmp_path)
    (path,) = tmp_path.glob(f"dtp-train-*-{kind}.npy")
    whole = path.read_bytes()
    # In the header, of which numpy says neither OSError nor ValueError, or nothing.
    length = (whole[:8] + bytes([value]) + whole[9:] for value in (1, whole[8] - 8))
    swapped = (("u1", "i1"), ("<i8", ">i8"), ("<i8", "<i2"), ("False, 'shape': (200, ", "True , 'shape': (200, "))
    kinds = (whole.replace(old.encode(), new.encode(), 1) for old, new in swapped)
    for damaged in (whole[: len(whole) // 2], b"", *length, *kinds):
        path.write_bytes(damaged)
        read, read_labels = imagenet32(tmp_path).load_train()
        assert np.array_equal(read[np.arange(200)], images) and np.array_equal(read_labels, labels)


def test_a_read_only_folder_is_converted_elsewhere(tmp_path, write_imagenet32, monkeypatch):
    write_imagenet32(tmp_path / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    imagenet32(tmp_path / "data")
    assert not list((tmp_path / "data").glob("dtp-*"))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4


@pytest.mark.parametrize("missing", ["train_data_batch_7", "val_data"])
def test_a_missing_file_is_named_with_where_to_get_it(tmp_path, write_imagenet32, missing):
    write_imagenet32(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=r"no such file.*Imagenet32_train.zip and .*_val.zip.*--data-dir") as error:
        imagenet32(tmp_path)
    assert str(tmp_path / missing) in str(error.value)


def test_a_truncated_file_is_named_and_leaves_no_cache(tmp_path, write_imagenet32):
    write_imagenet32(tmp_path)
    path = tmp_path / "train_data_batch_4"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated") as caught:
        imagenet32(tmp_path)
    assert str(path) in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 11


GOOD = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "without them"),
        ({"data": GOOD}, "without them"),
        ({"data": GOOD[:, :99], "labels": [1, 2]}, r"\(2, 99\)"),
        ({"data": GOOD.astype(float), "labels": [1, 2]}, "float64"),
        ({"data": "text", "labels": [1, 2]}, "str"),
        ({"data": GOOD, "labels": [1]}, "for 2 images"),
        ({"data": GOOD, "labels": [0, 999]}, "labels from 0 to 999"),
        ({"data": GOOD, "labels": [1, 1001]}, "labels from 1 to 1001"),
        ({"data": GOOD, "labels": ["a", "b"]}, "labels <U1"),
    ],
)
def test_foreign_content_is_described(tmp_path, content, words):
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_does_not(tmp_path, protocol):
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps({"data": Attack(tmp_path / "ran"), "labels": [1]}, protocol))
    with pytest.raises(UserError, match="mkdir"):
        read_pickle(path)
    assert not (tmp_path / "ran").exists()


OBJECTS = np.dtype("O")


class Crafted:
    """A dtype whose fields lie outside its numbers: numpy's own reader then reads memory of others, and crashes."""

    def __init__(self, name="i8", state=(3, "<", None, ("a",), {"a": (OBJECTS, 1 << 40)}, 8, 8, 0)):
        self.name, self.state = name, state

    def __reduce__(self):
        return np.dtype, (self.name, False, True), self.state


class CraftedArray:
    def __init__(self, dtype):
        self.dtype = dtype

    def __reduce__(self):
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2,), self.dtype, False, bytes(16))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "labels",
    [
        CraftedArray(Crafted()),
        CraftedArray(Crafted("i8", (3, "<", (np.dtype("i8"), (9,)), None, None, 1 << 40, 8, 0))),
        CraftedArray(Crafted("O8", (3, "|", None, None, None, -1, -1, 63))),
        CraftedArray(Crafted("V16", (3, "|", None, None, None, 1 << 40, 1, 0))),
        np.zeros(2, [("a", "i8")]),
        np.array([None, None]),
    ],
)
def test_a_pickle_of_arrays_that_are_not_numbers_is_refused(tmp_path, labels, protocol):
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps({"data": GOOD, "labels": labels}, protocol))
    with pytest.raises(UserError, match="which are not numbers"):
        read_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("labels", [np.array([1, 1000], ">i4"), np.array([1, 1000], "u2"), list(np.array([1, 1000]))])
def test_arrays_of_every_form_are_read(tmp_path, labels, protocol):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072)).astype(np.uint8)
    for data in (pixels, np.asfortranarray(pixels)):
        path = tmp_path / "val_data"
        path.write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol))
        found = read_pickle(path)
        assert np.array_equal(found[0], pixels) and found[1].tolist() == [0, 999]


def test_a_small_part_of_the_dataset_holds_out_a_tenth_by_default(tmp_path, write_imagenet32):
    """50 of each class would be more than there is."""
    write_imagenet32(tmp_path)
    assert imagenet32(tmp_path, val_size=None).sizes == {"train": 180, "val": 20, "test": 20}
