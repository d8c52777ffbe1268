"""Rules for shallow networks: one layer, or an auto-encoder with tied weights."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dtp.algorithms.options.base import AlgorithmOptions, OptimizerName, TargetOptions, rule
from dtp.fields import option


@dataclass
class SingleLayerOptions(AlgorithmOptions):
    """One linear layer (``--model mlp --widths``, without values), every weight by what its two sides do."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"


@rule("hebb", "single_layer:Hebb", "Hebbian learning of one layer, from labels or by itself (Hebb 1949)")
@dataclass
class HebbOptions(SingleLayerOptions):
    """Hebbian learning of one layer."""

    search_origin: ClassVar[str] = "Ours: no published domain; rates over three decades, and both forms of the rule."
    tasks: ClassVar[tuple[str, ...]] = ("classification", "clustering")
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.01, search={"log-uniform": [1e-4, 0.1]})
    # What a weight grows with: the product of its two sides (plain), which may grow without bound, or of their
    # differences from running means (covariance).
    hebb_form: Literal["plain", "covariance"] = option("covariance", search={"choice": ["plain", "covariance"]})
    # Weight of each batch in those running means, above 0 and up to 1.
    mean_rate: float = option(0.01, above=0, most=1, search={"log-uniform": [1e-3, 0.1]})
    # Bring the weights of each unit, its bias among them, to length 1 after every step.
    normalise_rows: bool = False
    # Units under --task clustering: they share one unit of activity by softmax (competing), or each is its own weighted
    # sum (linear), and all learn the same direction.
    units: Literal["competing", "linear"] = "competing"


@rule("delta", "single_layer:Delta", "the delta rule of one layer (Widrow, Hoff 1960)")
@dataclass
class DeltaOptions(SingleLayerOptions):
    """The delta rule."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; rates over three decades, with the slope of the units, where the loss has it, and "
        "without."
    )
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.05, search={"log-uniform": [1e-3, 1.0]})
    # Multiply each error by the slope of its unit: as the loss has it (auto, which is backprop), always or never.
    slope: Literal["auto", "yes", "no"] = option("auto", search={"choice": ["auto", "no"]})


@rule("competitive", "single_layer:Competitive", "competitive learning, the winner takes all (Rumelhart, Zipser 1985)")
@dataclass
class CompetitiveOptions(SingleLayerOptions):
    """Prototypes that compete for images, and move towards those that they win."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; the rate, and what keeps units from never winning. Not who wins (--winner): trials "
        "are judged by the loss, which is another one with each."
    )
    tasks: ClassVar[tuple[str, ...]] = ("clustering",)
    # Prototypes move by fractions of their distance to images.
    optimizer: Literal["sgd"] = "sgd"
    # Fraction of the way to the images won, above 0 and up to 1.
    lr: float = option(0.5, above=0, most=1, search={"log-uniform": [0.01, 1.0]})
    # Fraction for each layer, of which there is one, in place of --lr.
    layer_lr: list[float] = option([], above=0, most=1)
    # Who wins an image: the prototype at the least distance to it, or of the largest product with it.
    winner: Literal["distance", "product"] = "distance"
    # How far a prototype moves: by --lr times the mean over the batch, where images lost count as no movement (batch);
    # times the mean over the images of the batch that it won (won); or times the sum over these, divided by the number
    # of images that it ever won (count): with --lr 1 it then is the mean of them all, which is online k-means.
    pull: Literal["batch", "won", "count"] = "batch"
    # Take the images of a batch one after the other, each with the prototypes as the one before has left them; --pull
    # batch and won are the same then. One device only, and slow.
    one_by_one: bool = False
    # Bring each prototype to length 1 after every step.
    normalise_rows: bool = False
    # First prototypes: random images of the first batch, or the first weights of the network.
    first_prototypes: Literal["images", "weights"] = "images"
    # Head start of a prototype that has won nothing of late, in squared distance (twice a product), 0 or more; one that
    # wins an equal share has none, one that wins more a handicap.
    conscience: float = option(0.0, least=0, search={"uniform": [0.0, 10.0]})
    # Put a prototype onto a random image once its share of the images won falls below this part of an equal share;
    # from 0, for never, to below 1.
    revive_below: float = option(0.01, least=0, below=1, search={"choice": [0.0, 0.01, 0.1]})
    # Weight of each batch in the running shares of the images won, above 0 and up to 1.
    share_rate: float = option(0.02, above=0, most=1)


@rule("dtp-dae", "denoising_autoencoder:DenoisingAutoencoder", "denoising auto-encoder by DTP, tied weights (Lee 2018)")
@dataclass
class DenoisingAutoencoderOptions(TargetOptions):
    """Denoising auto-encoder with tied weights (``--model tied-autoencoder``)."""

    search_origin: ClassVar[str] = "Ours: no published domain; around the values of Lee 2018 that the preset holds."
    tasks: ClassVar[tuple[str, ...]] = ("autoencoder",)
    loss: Literal["squared"] = "squared"
    optimizer: OptimizerName = "lee-rmsprop"
    lr: float = option(1e-3, search={"log-uniform": [1e-4, 1e-2]})
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    # Without effect, for the first target is the image itself: always 1.
    beta: float = 1.0
    output_loss: Literal["mse"] = "mse"
    local_loss_scale: float = 2.0
    # Standard deviation of the noise on the images that the encoder learns from, as normalised, 0 or more.
    pixel_noise: float = option(0.3, least=0, search={"uniform": [0.0, 0.5]})
    # Standard deviation of the noise on the hidden units that the decoder sees, 0 or more.
    hidden_noise: float = option(0.3, least=0, search={"uniform": [0.0, 0.5]})
