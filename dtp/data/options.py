"""The datasets: name, class, one line, command-line options. Imports no torch, so that ``--help`` is quick."""

from dataclasses import dataclass
from typing import Literal

from dtp.fields import option
from dtp.registry import Registry

DATA = Registry("data", "dtp.data.base:ImageData")


@dataclass
class DataOptions:
    """Images: where they lie, how they are split, normalised, augmented and batched."""

    # Folder that holds the dataset (for imagefolder: the folder of class folders, or one with train/ and test/ in it).
    # auto: the one that DTP_DATA_DIR names, else the folder data where there is one, else datasets in torch's cache
    # ($TORCH_HOME, usually ~/.cache/torch).
    data_dir: str = option("auto", varies="process")
    # Download the dataset into --data-dir if it is not there (not for imagenet32 and imagefolder); without it nothing
    # ever touches the network.
    download: bool = option(False, varies="start")
    # Images per batch over all devices, which share them evenly (a multiple of their number), at least 1.
    batch_size: int = option(128, least=1)
    # Processes that load and augment batches, 0 or more; 0 loads in the main process, best for small datasets.
    num_workers: int = option(0, least=0, varies="process")
    # Keep the images as bytes in the memory of the device and make batches there, the same batches; auto does so on a
    # GPU when they take at most a quarter of its free memory.
    data_on_device: Literal["auto", "yes", "no"] = option("auto", varies="process")
    # Images held out of the training set for validation: a count (5000), a fraction below 1 (0.1), or 0 for none.
    # Default: the usual one (5000; imagenet32 50 of each class; digits, imagefolder and small parts a tenth).
    val_size: float | None = option(None, untimed=True)
    # Seed of the training/validation split, any whole number; kept apart from --seed so that runs with other seeds
    # share one split.
    split_seed: int = option(42, budget=True, untimed=True, unlimited=True)
    # Statistics that are subtracted and divided by: the dataset's own (standard), its std times three (std3x),
    # 0.5 and 0.5 (meanstd05), or none, which leaves pixels in [0, 1] (unit).
    normalisation: Literal["standard", "std3x", "meanstd05", "unit"] = "standard"
    # Coordinates of each image along this many principal components of the training images in place of its pixels, 0
    # for pixels; components are found after normalisation and without augmentation.
    pca: int = option(0, least=0, before=0)
    # Whether these coordinates keep their variances over the training images, which fall from the first to the last
    # (kept), or are divided by their deviations (whitened).
    pca_scale: Literal["kept", "whitened"] = option("kept", before="kept")
    # Mirror each training image left-right with probability one half. Default: the dataset's own (never for digits).
    flip: bool | None = None
    # Mirror each training image upside down with probability one half, as the text of Bartunov et al. has it.
    flip_vertical: bool = False
    # Crop each training image at random after padding it by this many pixels; 0 for none. Default: the dataset's own
    # (4 for CIFAR and imagenet32, an eighth of the side for imagefolder, 0 for the others). At most 1000.
    crop_padding: int | None = option(None, least=0, most=1000)
    # What the padding of the random crop holds: the edge pixels repeated, or zeros.
    padding_mode: Literal["edge", "zeros"] = "edge"


DATA.register("digits", "small:Digits", "8x8 grey digits, 10 classes, embedded in scikit-learn")(DataOptions)
DATA.register("mnist", "small:MNIST", "28x28 grey digits, 10 classes")(DataOptions)
DATA.register("fashion-mnist", "small:FashionMNIST", "28x28 grey clothes, 10 classes")(DataOptions)
DATA.register("kmnist", "small:KMNIST", "28x28 grey hiragana, 10 classes")(DataOptions)
DATA.register("cifar10", "small:CIFAR10", "32x32 colour photographs, 10 classes")(DataOptions)
DATA.register("cifar100", "small:CIFAR100", "32x32 colour photographs, 100 classes")(DataOptions)
DATA.register("imagenet32", "imagenet32:ImageNet32", "ImageNet at 32x32, 1000 classes")(DataOptions)


@DATA.register("imagefolder", "imagefolder:ImageFolderData", "any folder of class folders, resized to --image-size")
@dataclass
class ImageFolderOptions(DataOptions):
    """Class folders: --data-dir holds train/CLASS/*, test/CLASS/* and perhaps val/CLASS/*, or CLASS/* alone."""

    # Side in pixels to which every image is resized and centre-cropped, from 1 to 10000.
    image_size: int = option(32, least=1, most=10_000, unit="pixels")
