"""No damage of a checkpoint file passes."""

import random
import zipfile

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from dtp.run.sealed import Damaged, require_whole, save_sealed, sealed_tensors, whole_tensors

CONTENT = {"weights": torch.arange(3000.0), "step": 7, "small": [torch.ones(3), "text"]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.ckpt"
    with path.open("wb") as file:
        save_sealed(CONTENT, file)
    return path


def test_torch_and_zip_read_what_is_sealed(path):
    require_whole(path)
    for mmap in (False, True):
        read = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(read["weights"], CONTENT["weights"]) and read["step"] == 7
    assert zipfile.ZipFile(path).testzip() is None


def test_every_bit_that_flips_is_noticed(path):
    whole = path.read_bytes()
    places = {*range(300), *range(len(whole) - 400, len(whole)), *range(0, len(whole), 17)}
    draw = random.Random(0)
    for place in sorted(places):
        for bit in range(8) if place > len(whole) - 110 else [draw.randrange(8)]:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(Damaged):
                require_whole(path)


def test_what_is_cut_off_or_added_is_noticed(path):
    whole = path.read_bytes()
    for other in (whole[:-1], whole[:-71], whole[: len(whole) // 2], whole[1:], b"", b"torn", whole + b"\0", whole * 2):
        path.write_bytes(other)
        with pytest.raises(Damaged):
            require_whole(path)


def test_files_of_earlier_versions_are_read_and_their_checksums_compared(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(CONTENT, path)
    require_whole(path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(torch.arange(3000.0).numpy().tobytes()) + 4000] ^= 8
    path.write_bytes(whole)
    with pytest.raises(Damaged, match="checksum"):
        require_whole(path)


# --- safetensors ------------------------------------------------------------------------------------------------------

TENSORS = {"layers.0.weight": torch.arange(60.0).reshape(6, 10), "layers.0.bias": torch.ones(6), "n": torch.tensor(3)}


def test_other_programs_read_sealed_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(sealed_tensors(TENSORS))
    found, sealed = whole_tensors(path)
    assert sealed
    for read in (found, load_file(path)):
        assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in read)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_every_bit_that_flips_in_sealed_tensors_is_noticed(tmp_path):
    """Of the name of the digest in its absence: a file of another program has none."""
    path = tmp_path / "a.safetensors"
    whole = sealed_tensors(TENSORS)
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found, sealed = whole_tensors(path)
            except (Damaged, SafetensorError):
                continue
            assert not sealed and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    path.write_bytes(whole[:-1])
    with pytest.raises((Damaged, SafetensorError)):
        whole_tensors(path)
