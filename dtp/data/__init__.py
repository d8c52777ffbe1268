"""Datasets: LightningDataModules and the table of their statistics. ``--data`` chooses one."""

from dtp.registry import Entry, Registry

_IMAGES = "dtp.data.options:DataOptions"

DATA = Registry(
    "data",
    "dtp.data.base:ImageData",
    [
        Entry("digits", "dtp.data.small:Digits", _IMAGES, "8x8 grey digits, 10 classes, embedded in scikit-learn"),
        Entry("mnist", "dtp.data.small:MNIST", _IMAGES, "28x28 grey digits, 10 classes"),
        Entry("fashion-mnist", "dtp.data.small:FashionMNIST", _IMAGES, "28x28 grey clothes, 10 classes"),
        Entry("kmnist", "dtp.data.small:KMNIST", _IMAGES, "28x28 grey hiragana, 10 classes"),
        Entry("cifar10", "dtp.data.small:CIFAR10", _IMAGES, "32x32 colour photographs, 10 classes"),
        Entry("cifar100", "dtp.data.small:CIFAR100", _IMAGES, "32x32 colour photographs, 100 classes"),
        Entry("imagenet32", "dtp.data.imagenet32:ImageNet32", _IMAGES, "ImageNet at 32x32, 1000 classes"),
        Entry(
            "imagefolder",
            "dtp.data.imagefolder:ImageFolderData",
            "dtp.data.options:ImageFolderOptions",
            "any folder of class folders, resized to --image-size",
        ),
    ],
)
