"""The base of all datasets: splits, normalisation, augmentation and loaders."""

import os
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from dtp.compat import batches_done
from dtp.contracts import handed_back, require_batch, shown
from dtp.data.augmentation import Augmentation
from dtp.data.batches import BatchLoader, ImageBatches, Plain
from dtp.data.cache import data_folder
from dtp.data.images import Images
from dtp.data.on_device import DeviceBatches, wanted_on_device
from dtp.data.options import DATA, DataOptions
from dtp.data.pca import Projection, fit_projection
from dtp.data.sampler import OrderedBatches, TrainingBatches, require_one_each
from dtp.data.shares import evaluation_share, training_share
from dtp.data.split import SplitKind, count_held_out, split_indices
from dtp.data.statistics import STATISTICS, Statistics, compute_statistics, used_statistics
from dtp.errors import UserError
from dtp.fields import checked, require_options

Part = tuple[Images, np.ndarray]


class ImageData(LightningDataModule):
    """Images with class labels, in a training, a validation and a test part.

    A dataset says how its images are read: :meth:`load_train` and :meth:`load_test`, and the class attributes below.
    Batches are ``(x, y)``: ``x`` float32 (B, C, H, W), normalised, or with ``--pca N`` (B, N, 1, 1), the coordinates
    along the principal components of the training images kept; ``y`` int64 (B,).

    Args:
        options: command-line options.
        seed: of the order and of the augmentation of the training images, not of the split.

    Attributes:
        name: what the dataset is called on the command line and in :data:`~dtp.data.statistics.STATISTICS`.
        num_classes: number of classes; labels are 0 .. num_classes - 1.
        val_size: images held out for validation by default, a count or a fraction below 1.
        split: how they are chosen: ``random``, ``stratified`` or ``balanced`` over classes.
        flip: whether training images are mirrored by default.
        crop_padding: padding in pixels of the random crop by default, 0 for none.

    Raises:
        UserError: an option is out of range.
    """

    Options = DataOptions

    name: str
    num_classes: int
    val_size: float = 0.1
    split: SplitKind = "random"
    flip: bool = False
    crop_padding: int = 0

    def __init__(self, options: DataOptions, seed: int = 0):
        super().__init__()
        require_options(self.Options, options, type(self).__name__)
        self.options = _checked_options(options)
        self.seed = seed
        self.data_dir = data_folder(options.data_dir)
        self._parts: dict[str, ImageBatches | None] = {}
        # By device, the parts that are kept there; None where they are kept on the host.
        self._on_device: dict[torch.device, dict[str, DeviceBatches] | None] = {}
        self._statistics: Statistics | None = None
        self._projection: Projection | None = None
        self._input_shape: tuple[int, int, int] | None = None

    # What a dataset provides.

    def load_train(self) -> Part:
        """Training images (uint8, indexed like an array (N, C, H, W)) and labels (int64, (N,)), in a fixed order."""
        raise UserError(f"{type(self).__name__} does not say what its training images are; define load_train in it.")

    def load_test(self) -> Part:
        """Test images and labels, in the same form."""
        raise UserError(f"{type(self).__name__} does not say what its test images are; define load_test in it.")

    def load_val(self) -> Part | None:
        """Validation images of their own; by default there are none, and some training images are held out."""
        return None

    def prepare_data(self) -> None:
        """Download what is missing, check files and build caches; called in one process.

        Raises:
            UserError: files are missing and ``download`` is off, or files are damaged or foreign.
        """

    def own_statistics(self, train: Images) -> Statistics:
        """Mean and std of the training images: from the table, else computed."""
        if self._is_known(train):
            return STATISTICS[self.name]
        return compute_statistics(train[rows] for rows in np.array_split(np.arange(len(train)), 1 + len(train) // 1024))

    # What Lightning and the rules use.

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network gets; valid after ``setup``."""
        if self._input_shape is None:
            raise RuntimeError("input_shape is known after prepare_data() and setup()")
        return self._input_shape

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel that images are normalised with, for pixels in [0, 1]; valid after ``setup``."""
        if self._statistics is None:
            raise RuntimeError("statistics are known after prepare_data() and setup()")
        return self._statistics.mean, self._statistics.std

    @property
    def projection(self) -> Projection | None:
        """The map to principal components that ``--pca`` asks for; valid after ``setup``."""
        return self._projection

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by part: train, val, test; valid after ``setup``."""
        return {name: 0 if part is None else len(part) for name, part in self._parts.items()}

    def setup(self, stage: str | None = None) -> None:
        """Load the images and split them; the first call does all, whatever the stage.

        Raises:
            UserError: as ``prepare_data``, or more validation images are asked for than there are images.
        """
        if self._parts:
            return
        train = self._checked(self.load_train(), "training", "load_train")
        test = self._checked(self.load_test(), "test", "load_test")
        self._require_shape_of(train, test, "test")
        channels, height, width = train[0].shape[1:]
        self._input_shape = (channels, height, width)
        own = self.own_statistics(train[0])
        if not isinstance(own, Statistics):
            raise handed_back(self, "own_statistics", "a Statistics(mean, std)", own)
        known = self.name if self._is_known(train[0]) else ""
        self._statistics = used_statistics(own, self.options.normalisation, known)
        kept, val = self._split(train)
        if self.options.pca:
            whiten = self.options.pca_scale == "whitened"
            self._projection = fit_projection(train[0], kept, self._statistics, self.options.pca, whiten, self.name)
            self._input_shape = (self.options.pca, 1, 1)
        self._parts = {
            "train": self._part(train, kept, self._augmentation()),
            "val": None if val is None else self._part(*val),
            "test": self._part(test, np.arange(len(test[1]))),
        }

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, augmented batches; starts where the run of the attached trainer stands (see ``sampler.py``)."""
        dataset = self._read_part("train")
        assert dataset is not None
        rank, ranks = training_share(self.trainer)
        batches = TrainingBatches(len(dataset), self.options.batch_size, self.seed, rank, ranks)
        if self.trainer is not None:
            batches.batches_done = partial(self._batches_done, len(batches))
        return BatchLoader(self._placed("train"), batches, self.options.num_workers, self._device)

    def val_dataloader(self) -> BatchLoader | list:
        """All validation images in order, not augmented; an empty list when there are none."""
        return self._ordered("val")

    def test_dataloader(self) -> BatchLoader | list:
        """All test images in order, not augmented."""
        return self._ordered("test")

    def predict_dataloader(self) -> Any:
        """The batches of :meth:`test_dataloader`."""
        found = self.test_dataloader()
        return Plain(found) if isinstance(found, BatchLoader) else found

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # Loaders may be a subclass's own; here nobody has looked at their batches yet. Predictions need no labels, and
        # the model looks at its inputs by itself.
        assert self.trainer is not None
        if not self.trainer.predicting:
            split = "test" if self.trainer.testing else "val" if self.trainer.evaluating else "train"
            require_batch(self, f"{split}_dataloader", batch, self.input_shape)
        return batch

    # How it is done.

    def _read_part(self, part: str) -> ImageBatches | None:
        if not self._parts:
            raise UserError(
                f"{type(self).__name__}: expected images that have been read, found none yet; call prepare_data() and "
                "setup() before its loaders."
            )
        return self._parts[part]

    def _ordered(self, part: str) -> BatchLoader | list:
        dataset = self._read_part(part)
        if dataset is None:
            return []
        rank, ranks = evaluation_share(self.trainer)
        require_one_each(part, len(dataset), ranks)
        batches = OrderedBatches(len(dataset), -(-self.options.batch_size // ranks), rank, ranks)
        return BatchLoader(self._placed(part), batches, self.options.num_workers, self._device)

    def _placed(self, part: str) -> ImageBatches | DeviceBatches:
        """The images of a part where their batches are made: in the host's memory, or in the device's."""
        device, batches = self._device, self._parts[part]
        assert batches is not None
        if device not in self._on_device:
            parts = [images for images in self._parts.values() if images is not None]
            self._on_device[device] = {} if wanted_on_device(self.options.data_on_device, parts, device) else None
        placed = self._on_device[device]
        if placed is None:
            return batches
        if part not in placed:
            placed[part] = DeviceBatches(batches, device)
        return placed[part]

    @property
    def _device(self) -> torch.device:
        """Where the attached trainer trains."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _batches_done(self, in_a_pass: int) -> int:
        assert self.trainer is not None
        done, kept = batches_done(self.trainer), self.trainer.overfit_batches  # pyright: ignore[reportAttributeAccessIssue] (its connectors set it)
        if not kept:
            return done
        # Epochs that are to overfit have the same batches; where training goes on within one, the rest of them.
        return done % max(1, min(kept if isinstance(kept, int) else int(kept * in_a_pass), in_a_pass))

    def _is_known(self, train: Images) -> bool:
        """Whether these may be the images of :data:`STATISTICS`: a class of the user's may have a name of ours."""
        known = STATISTICS.get(self.name)
        if known is None or len(known.mean) != train.shape[1]:
            return False
        return isinstance(self, DATA.resolve(self.name).load())

    def _split(self, train: Part) -> tuple[np.ndarray, tuple[Part, np.ndarray] | None]:
        """Indices of the training images kept, and the validation images with their indices."""
        everything = np.arange(len(train[1]))
        own = self.load_val() if self.options.val_size is None else None
        if own is not None:
            val = self._checked(own, "validation", "load_val")
            self._require_shape_of(train, val, "validation")
            return everything, (val, np.arange(len(val[1])))
        size = self.options.val_size
        if size is None:
            # The usual count is one for the whole dataset; of a small part of it, a tenth.
            size = self.val_size if self.val_size <= len(everything) / 2 else 0.1
        count = count_held_out(size, len(everything), self.name)
        if count == 0:
            return everything, None
        kept, held_out = split_indices(train[1], count, self.options.split_seed, self.split)
        return kept, (train, held_out)

    def _augmentation(self) -> Augmentation | None:
        options = self.options
        flip = self.flip if options.flip is None else options.flip
        padding = self.crop_padding if options.crop_padding is None else options.crop_padding
        if not (flip or padding or options.flip_vertical):
            return None
        return Augmentation(flip, padding, options.padding_mode, self.seed, options.flip_vertical)

    def _part(self, part: Part, indices: np.ndarray, augmentation: Augmentation | None = None) -> ImageBatches:
        assert self._statistics is not None
        return ImageBatches(*part, indices, self._statistics, augmentation, self._projection)

    def _checked(self, part: Part, role: str, method: str) -> Part:
        self._require_attributes()
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise handed_back(self, method, "two things, images and labels", part)
        images, labels = part
        shape, kind = getattr(images, "shape", None), getattr(images, "dtype", np.dtype(np.uint8))
        wrong = shape is None or len(shape) != 4 or 0 in tuple(shape[1:]) or kind != np.uint8
        if isinstance(images, torch.Tensor) or wrong:
            found = shown(images) if shape is None or not isinstance(kind, np.dtype) else f"{kind} of shape {shape}"
            raise UserError(
                f"{self.name}: expected {role} images as uint8 of shape (N, C, H, W), a numpy array or what can be "
                f"indexed like one, found {found}; fix {method} of {type(self).__name__}."
            )
        labels = self._checked_labels(labels, role, method)
        if len(images) != len(labels) or len(labels) == 0:
            raise UserError(
                f"{self.name} in {self.data_dir}: expected as many {role} images as labels, and at least one, found "
                f"{len(images)} images and {len(labels)} labels; fetch the files again."
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise UserError(
                f"{self.name} in {self.data_dir}: expected {role} labels from 0 to {self.num_classes - 1}, found "
                f"{labels.min()} to {labels.max()}; these are not the files of {self.name}."
            )
        return images, labels

    def _require_shape_of(self, train: Part, other: Part, role: str) -> None:
        expected, found = (tuple(images.shape[1:]) for images, _ in (train, other))
        if found != expected:
            raise UserError(
                f"{self.name}: expected {role} images of the shape of the training images, {expected}, found {found}."
            )

    def _checked_labels(self, labels: Any, role: str, method: str) -> np.ndarray:
        expected = f"{type(self).__name__}: expected {role} labels, one whole number for each"
        try:
            found = np.asarray(labels)
            with np.errstate(invalid="ignore"):
                whole = found.astype(np.int64)
            # Numbers in floating point are labels where they are whole.
            if found.ndim == 1 and (whole == found).all():
                return whole
        except (TypeError, ValueError, OverflowError) as error:
            # Words, or lists of several lengths.
            raise UserError(f"{expected}, found none; fix {method}.") from error
        odd = found[whole != found][:1].tolist() if found.ndim == 1 else []
        what = odd[0] if odd else f"an array of shape {found.shape}"
        raise UserError(f"{expected}, found {what}; fix {method}.")

    def _require_attributes(self) -> None:
        kinds = {"name": (str, "a name in quotes"), "num_classes": (int, "a whole number of at least 1")}
        for attribute, (kind, words) in kinds.items():
            if not hasattr(self, attribute):
                raise UserError(f"{type(self).__name__} needs a class attribute {attribute!r}; define it.")
            value = getattr(self, attribute)
            if not isinstance(value, kind) or value in ("", 0) or (attribute == "num_classes" and value < 1):
                raise UserError(f"{attribute} of {type(self).__name__}: expected {words}, found {value!r}; fix it.")
        if self.split not in get_args(SplitKind):
            raise UserError(
                f"split of {type(self).__name__}: expected {' or '.join(get_args(SplitKind))}, found {self.split!r}; "
                "fix it."
            )


def _checked_options(options: DataOptions) -> DataOptions:
    """``options`` as :func:`dtp.fields.checked`, and those that must fit each other."""
    options = checked(options)
    # Each is a process with a copy of what this one has imported.
    most = max(16, 4 * (os.cpu_count() or 1))
    if options.num_workers > most:
        raise UserError(
            f"--num-workers {options.num_workers}: expected at most {most}, four for each core; give fewer."
        )
    if options.pca_scale != "kept" and not options.pca:
        raise UserError("--pca-scale: expected --pca with a number of components as well, found none; add it.")
    return options
