"""Mistakes on the command line and in what it names: each is told in one sentence, and leaves nothing behind.

A row is a line of words as they are typed in an empty folder with what :func:`prepare` puts there. ``run`` is a folder
that no mistake may leave.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Mistake:
    """A row.

    Attributes:
        kind: the class of mistakes that it is of.
        words: of the command line.
    """

    kind: str
    words: tuple[str, ...]


def prepare(here: Path) -> None:
    """Put into an empty folder what the rows name."""
    (here / "file").write_text("hello\n")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("hello\n")
    (here / "empty").mkdir()
    for name, text in {
        "list.yaml": "- 1\n- 2\n",
        "broken.yaml": "lr: [1, 2\n",
        "unknown.yaml": "learning_rate: 0.1\n",
        "typed.yaml": "lr: often\n",
        "nested.yaml": "lr: {a: 1}\n",
        "tagged.yaml": "lr: !!python/object/apply:os.getcwd []\n",
        "twice.yaml": "resume: auto\n",
        "inner.yaml": "config: list.yaml\n",
        "numbers.yaml": "1: 2\n",
        "empty.yaml": "",
        "null.yaml": "lr: null\n",
    }.items():
        (here / name).write_text(text)
    (here / "bytes.yaml").write_bytes(b"\xff\xfe\x00lr: 1\n")
    (here / "syntax.py").write_text("class Rule(:\n")
    (here / "raises.py").write_text("1 / 0\n")
    (here / "module.py").write_text("Rule = 3\n\n\nclass Plain:\n    pass\n")
    raw = here / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"not an image at all" * 10)
    cifar = here / "cifar" / "cifar-10-batches-py"
    cifar.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (cifar / name).write_bytes(pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}))
    images = here / "images"
    for part in ("train", "test"):
        (images / part / "a").mkdir(parents=True)
        (images / part / "a" / "0.png").write_bytes(b"not an image")
    (here / "no_classes" / "train").mkdir(parents=True)
    (here / "no_classes" / "test").mkdir(parents=True)


def _rows(kind: str, lines: str) -> list[Mistake]:
    return [Mistake(kind, tuple(_words(line))) for line in lines.strip().splitlines()]


def _words(line: str) -> list[str]:
    return ["" if word == "''" else word for word in line.split()]


MISTAKES = [
    *_rows(
        "unknown names",
        """
        --algo nothing
        --algo DTP
        --model nothing
        --data nothing
        --data minst
        --algo dtp:Rule
        --algo nowhere:Rule
        --algo nowhere.at.all:Rule
        --algo syntax:Rule
        --algo raises:Rule
        --algo module:Rule
        --algo module:Plain
        --algo module:Nothing
        --model module:Plain
        --data module:Plain
        --algo os:path
        --algo :
        --algo :Rule
        --algo module:
        --algo a:b:c
        --config nothing
        --task nothing
        --task clustering
        --algo dtp-dae --task classification
        --algo competitive --task autoencoder
        """,
    ),
    *_rows(
        "unknown options",
        """
        --learning-rate 0.1
        --lrr 0.1
        --epochs 3
        -x
        hello
        --lr 0.1 hello
        --alpha 0.3
        --channels 3 4
        --image-size 32
        --model lenet --widths 3
        --algo bp --noise 0.1
        --algo bp --feedback-lr 0.1
        --help-me
        --
        """,
    ),
    *_rows(
        "values of another type",
        """
        --lr
        --lr often
        --lr ''
        --lr 1,5
        --lr 0x1
        --max-epochs 1.5
        --max-epochs many
        --seed 1.5
        --seed x
        --batch-size 3.5
        --batch-size big
        --flip maybe
        --download perhaps
        --widths a b
        --widths 3.5
        --noise a
        --optimizer best
        --lr-schedule sometimes
        --activation cos
        --init random
        --precision 7
        --engine fast
        --loss nothing
        --accelerator abacus
        --logger paper
        --memory-format sideways
        --test-weights worst
        --padding-mode nothing
        --feedback-parallel none
        --val-size half
        --limit-train-batches half
        --devices many
        """,
    ),
    *_rows(
        "values out of range",
        """
        --lr 0
        --lr -1
        --lr nan
        --lr=-1e-3
        --momentum 1
        --momentum -0.1
        --momentum nan
        --weight-decay -1
        --weight-decay nan
        --beta 0
        --beta -1
        --beta nan
        --beta inf
        --noise 0
        --noise -1
        --noise nan
        --noise inf
        --noise 0.1 0.2 0.3
        --feedback-iterations -1
        --feedback-iterations 1 2 3 4
        --feedback-lr 0
        --feedback-lr nan
        --feedback-lr 1 2 3
        --feedback-momentum 1
        --feedback-memory -1
        --feedback-warmup -1
        --feedback-stop-distance -1
        --noise-samples 0
        --noise-decay -1
        --batch-size 0
        --batch-size -3
        --num-workers -1
        --crop-padding -1
        --pca -1
        --pca 100
        --pca-scale whitened
        --val-size -1
        --val-size 5000
        --val-size 1.5
        --val-size nan
        --widths 0
        --widths 3 0
        --widths -1
        --leaky-slope 0
        --leaky-slope 1
        --max-epochs -1
        --max-epochs 0
        --max-steps 0
        --max-steps -2
        --seed -1
        --log-every 0
        --log-every -1
        --checkpoint-every -1
        --diagnostics-every -1
        --limit-train-batches 0
        --limit-train-batches -1
        --limit-train-batches 0.0001
        --limit-train-batches nan
        --limit-val-batches -1
        --clip-norm -1
        --lr-gamma 0
        --lr-gamma 2
        --lr-min -1
        --lr-min 9
        --layer-lr 0.1
        --layer-lr 0.1 -1
        --eps 0
        --beta2 2
        --devices 0
        --devices -1
        --devices 4096
        --num-nodes 0
        --num-nodes 2
        --clusters 0
        --clusters 5
        --algo hybrid --alpha 2
        --algo hybrid --alpha -1
        --algo hybrid --alpha nan
        --local-loss-scale 0
        """,
    ),
    *_rows(
        "values that are found out of range in training",
        """
        --lr inf
        --feedback-warmup 4000
        --schedule alternating --max-epochs 1
        --feedback-warmup-epochs 2 --max-epochs 2
        """,
    ),
    *_rows(
        "numbers that Python has but torch has not",
        """
        --widths 99999999999999999999999
        --seed 99999999999999999999999999
        --lr 1e300
        --noise 1e300
        --num-workers 99999999999
        """,
    ),
    *_rows(
        "counts that never end, or have no room",
        """
        --max-epochs 1000000000000
        --max-steps 99999999999999999999
        --feedback-iterations 1000000000
        --feedback-iterations 20 1000000000
        --noise-samples 1000000000
        --batch-size 1000000000000
        --crop-padding 1000000
        --data imagefolder --image-size 1000000
        --widths 1000000000
        --num-nodes 1000000000
        --algo wm --mirror-warmup 1000000000
        --algo chl --settling-steps 1000000000
        --algo ao-sdtp --auxiliary 1000000000
        --model stochastic --passes 1000000000
        --model lenet --channels 1000000000 3
        """,
    ),
    *_rows(
        "options that exclude each other",
        """
        --feedback-stop-distance 0.3 --engine graph
        --feedback-stop-distance 0.3 --engine literal
        --feedback-iterations inf
        --extra-feedback-epochs 1 --schedule alternating
        --schedule warmup
        --algo gait --model mlp
        --algo chl --model lenet
        --model vgg
        --algo hebb --model lenet
        --algo bp --model discrete --sign-gradient nothing
        --model tied-autoencoder
        --task autoencoder --pca 4
        --task autoencoder --loss cross-entropy
        --accelerator gpu --devices 3
        """,
    ),
    *_rows(
        "empty values, as unset variables give",
        """
        --algo ''
        --model ''
        --data ''
        --config ''
        --resume ''
        --run-dir ''
        --data-dir ''
        --init-weights ''
        --task ''
        """,
    ),
    *_rows(
        "files and folders",
        """
        --run-dir file
        --run-dir file/run
        --run-dir full
        --run-dir full/notes.txt
        --run-dir /proc/run
        --run-dir /dev/null
        --resume nothing
        --resume empty
        --resume full
        --init-weights nothing
        --init-weights file
        --init-weights empty
        --config file
        --config empty
        --config list.yaml
        --config broken.yaml
        --config unknown.yaml
        --config typed.yaml
        --config nested.yaml
        --config tagged.yaml
        --config twice.yaml
        --config inner.yaml
        --config numbers.yaml
        --config bytes.yaml
        --config /dev/null/x.yaml
        --run-dir ~nosuchuser/run
        --resume ~nosuchuser/run
        --data mnist --data-dir ~nosuchuser
        """,
    ),
    *_rows(
        "data",
        """
        --data mnist --data-dir empty
        --data mnist --data-dir nothing
        --data mnist --data-dir file
        --data mnist --data-dir mnist
        --data fashion-mnist --data-dir empty
        --data kmnist --data-dir empty
        --data cifar10 --data-dir empty
        --data cifar10 --data-dir cifar
        --data cifar100 --data-dir empty
        --data imagenet32 --data-dir empty
        --data imagenet32 --data-dir file
        --data imagefolder --data-dir empty
        --data imagefolder --data-dir nothing
        --data imagefolder --data-dir file
        --data imagefolder --data-dir images
        --data imagefolder --data-dir no_classes
        --data imagefolder --data-dir images --image-size 0
        --data imagefolder --data-dir images --image-size -1
        """,
    ),
    Mistake("names that no file can have", ("--run-dir", "x" * 300)),
    Mistake("names that no file can have", ("--resume", "x" * 300)),
    Mistake("names that no file can have", ("--config", "x" * 300)),
    Mistake("names that no file can have", ("--algo", "x" * 300 + ":Rule")),
    Mistake("names that no file can have", ("--data", "mnist", "--data-dir", "x" * 300)),
    Mistake("names that no file can have", ("--run-dir", "a\0b")),
    Mistake("names that no file can have", ("--resume", "a\0b")),
    Mistake("names that no file can have", ("--config", "a\0b")),
    Mistake("names that no file can have", ("--algo", "a\0b:Rule")),
    Mistake("words that no file can hold", ("--run-dir", "a\nb\nlr: 3", "--lr", "0")),
    Mistake("words that no file can hold", ("--config", "\udcff")),
    *_rows(
        "paths that are not what they are taken for, and no value",
        """
        --resume file
        --resume full/notes.txt
        --config null.yaml
        """,
    ),
]
