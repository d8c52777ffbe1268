"""Principal components of the training images in place of pixels."""

import json

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dtp.cli.train import main
from dtp.data.on_device import DeviceBatches
from dtp.data.options import DataOptions
from dtp.data.pca import fit_projection
from dtp.data.small import Digits
from dtp.data.statistics import Statistics
from dtp.errors import UserError
from tests.data.test_base import batches, digits, same
from tests.data.test_on_device import Noise
from tests.runs import fails

PLAIN = Statistics((0.0,), (1.0,))


def images(data, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a part as the network gets them, in order, and labels."""
    dataset = data._parts[part]
    return dataset.__getitems__((0, np.arange(len(dataset))))


def test_coordinates_are_scikit_learns_of_the_normalised_training_images():
    pixels, projected = digits(), digits(pca=20)
    reference = PCA(20, svd_solver="full").fit(images(pixels, "train")[0].flatten(1).double().numpy())
    signs = np.sign(reference.components_[np.arange(20), np.abs(reference.components_).argmax(axis=1)])
    for part in ("train", "val", "test"):
        expected = reference.transform(images(pixels, part)[0].flatten(1).double().numpy()) * signs
        found, labels = images(projected, part)
        assert torch.equal(labels, images(pixels, part)[1])
        assert np.abs(found.flatten(1).numpy() - expected).max() < 1e-5
    assert projected.projection.explained == pytest.approx(reference.explained_variance_ratio_.sum())


def test_components_are_those_of_the_images_kept_for_training_alone():
    def weight(**options):
        return digits(pca=5, **options).projection.weight

    assert torch.equal(weight(), weight(batch_size=7, num_workers=1))
    assert not torch.equal(weight(), weight(split_seed=1))
    assert not torch.equal(weight(), weight(val_size=0.0))


def test_components_do_not_depend_on_the_order_of_the_images():
    # Second moments are exact, over more than one block of them.
    grey = np.random.default_rng(0).integers(0, 256, (700, 1, 5, 5), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(700)
    one, other = (fit_projection(grey, rows, PLAIN, 4) for rows in (np.arange(700), order))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.mean, other.mean)


def test_a_block_of_the_brightest_images_is_summed_exactly():
    white = np.full((256, 1, 2, 2), 255, dtype=np.uint8)
    white[0, 0, 0, 0] = 254
    projection = fit_projection(white, np.arange(256), PLAIN, 1)
    # One pixel differs by one grey level in one of 256 images.
    assert projection.variances[0] == pytest.approx(255 / 256**2 / 255**2, rel=1e-9)
    assert projection.weight.flatten().tolist() == [1, 0, 0, 0]


def test_the_larger_variance_comes_first_and_whitened_ones_are_one():
    kept, whitened = (
        images(digits(pca=30, pca_scale=scale), "train")[0].flatten(1).double() for scale in ("kept", "whitened")
    )
    variances = kept.var(dim=0, correction=0)
    assert kept.mean(dim=0).abs().max() < 1e-5
    assert variances.tolist() == pytest.approx(digits(pca=30).projection.variances, rel=1e-4)
    assert (variances.diff() < 0).all() and variances[0] > 10 * variances[-1]
    assert (whitened.T @ whitened / len(whitened) - torch.eye(30)).abs().max() < 1e-4


@pytest.mark.parametrize("workers", [0, 2])
def test_the_network_gets_n_channels_of_one_pixel(workers):
    data = digits(pca=12, num_workers=workers)
    assert data.input_shape == (12, 1, 1)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, _ = batches(loader)[0]
        assert x.shape[1:] == (12, 1, 1) and x.dtype == torch.float32


def test_augmented_images_are_projected_by_the_components_of_the_plain_ones():
    def made(**options):
        data = Noise(DataOptions(batch_size=47, flip=True, crop_padding=1, val_size=0.0, **options), seed=3)
        data.setup()
        return data

    pixels, projected = made(), made(pca=3)
    plain = Noise(DataOptions(pca=3, val_size=0.0), seed=3)
    plain.setup()
    assert torch.equal(projected.projection.weight, plain.projection.weight)
    (x, _), (z, _) = (batches(data.train_dataloader())[0] for data in (pixels, projected))
    assert torch.equal(projected.projection(x), z)


def test_batches_made_on_the_device_are_the_same():
    def loader(where):
        data = Digits(DataOptions(pca=9, batch_size=32, data_on_device=where), seed=1)
        data.setup()
        return data.train_dataloader()

    host, device = loader("no"), loader("yes")
    assert isinstance(device.dataset, DeviceBatches)
    assert same(batches(host), batches(device))


def test_more_components_than_directions_are_refused_in_one_sentence(capsys, here):
    with pytest.raises(UserError, match=r"--pca: expected .* from 1 to 61, .* of digits vary, found 62"):
        digits(pca=62)
    assert digits(pca=61).projection.explained == pytest.approx(1)
    fails(capsys, ["--pca", "500"], "--pca: expected", "found 500")
    fails(capsys, ["--pca", "-1"], "--pca: expected 0 or more, found -1")
    fails(capsys, ["--pca-scale", "whitened"], "--pca-scale: expected --pca")
    fails(capsys, ["--pca", "3", "--pca-scale", "white"], "--pca-scale: expected one of kept, whitened; found 'white'")
    fails(capsys, ["--pca", "3", "--task", "autoencoder"], "--pca: expected images", "use 0")
    assert list(here.iterdir()) == []


def test_few_images_have_fewer_directions_than_pixels():
    grey = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4), dtype=np.uint8)
    with pytest.raises(UserError, match="from 1 to 5, "):
        fit_projection(grey, np.arange(6), PLAIN, 6)


def test_runs_made_before_the_option_existed_are_those_without_it(here):
    assert main(["--algo", "bp", "--max-epochs", "1", "--lr-schedule", "constant", "--run-dir", "run"]) == 0
    config = here / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("pca")))
    assert len(lines) - len(config.read_text().splitlines()) == 2
    assert main(["--resume", "run", "--max-epochs", "2"]) == 0
    assert json.loads((here / "run" / "summary.json").read_text())["epochs"] == 2
