"""Simplified difference target propagation, with and without auxiliary outputs."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import AOSDTPOptions, SDTPOptions
from dtp.algorithms.vanilla_dtp import VanillaDTP
from dtp.errors import UserError
from dtp.feedback import FeedbackNetwork, layer_operations
from dtp.models.modules import RandomOperation
from dtp.models.network import Network


class SDTP(VanillaDTP):
    """Simplified difference target propagation (Bartunov et al. 2018, section 3.1): no gradient of any layer above.

    The feedback of the output layer takes class probabilities, s_N = softmax(logits), and the first target is the
    one-hot label. In an auto-encoder it takes pixels, s_N = sigmoid(output), and the first target is the image. Targets
    go down by the difference rule. Reconstruction is denoising: the target of G_n(F_n(s_{n-1} + eps)) is the clean
    s_{n-1}. The output layer learns the task loss.

    Left out by the paper: batch sizes (128 in our presets) and whether noise is drawn anew for every layer (it is).
    """

    Options = SDTPOptions
    options: SDTPOptions
    learns_any_loss = False
    reconstructs = "clean"

    def __init__(self, network: Network, options: SDTPOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        if self.task.uses_labels and self.options.loss != "cross-entropy":
            raise UserError(
                f"--loss {self.options.loss}: expected cross-entropy for classification, for the first target is one "
                "of probabilities; leave it out."
            )
        self._require_no_step("the first target is the label itself")

    def activation(self, n: int, output: Tensor, s_in: Tensor) -> Tensor:
        return self.task.view(output) if n == self.network.depth else output

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        return self.task.wanted(y, like=activations.s[-1])


class AOSDTP(SDTP):
    """SDTP with auxiliary outputs (Bartunov et al. 2018, section 3.2), which make the targets below more diverse.

    There are ``auxiliary`` random units z = tanh(W_z s_{N-1} + b_z). They are never trained and are not part of the
    task loss. The feedback of the output layer takes [probabilities, z], and the first target is [label, z].

    Left out by the paper: the nonlinearity of z (tanh here), the initialisation of W_z (here PyTorch's, as for the
    output layer), and all tuned values (our presets use those of SDTP).
    """

    Options = AOSDTPOptions
    options: AOSDTPOptions
    auxiliary: nn.Linear

    def make_feedback(self) -> FeedbackNetwork:
        *before, output = layer_operations(self.network[self.network.depth])
        if not isinstance(output, nn.Linear):
            raise UserError(
                f"ao-sdtp: expected a network that ends in a Linear, found {type(output).__name__}; use sdtp."
            )
        if any(True for module in before for _ in module.buffers()):
            raise UserError(
                "ao-sdtp: expected no normalisation in the output layer, found "
                f"{', '.join(type(module).__name__ for module in before)}; put it into the layer below, or use sdtp."
            )
        if any(isinstance(module, RandomOperation | _DropoutNd) for module in before):
            raise UserError(
                "ao-sdtp: expected no random units and no dropout before the output layer, for auxiliary outputs see "
                f"what the output sees, found {', '.join(type(module).__name__ for module in before)}; put them into "
                "the layer below, or use sdtp."
            )
        made = nn.Linear(output.in_features, self.options.auxiliary, dtype=output.weight.dtype)
        self.auxiliary = made.to(output.weight.device)
        self.auxiliary.requires_grad_(False)
        return super().make_feedback()

    def undone_layer(self, n: int) -> nn.Module:
        if n < self.network.depth:
            return self.network[n]
        *before, output = layer_operations(self.network[n])
        assert isinstance(output, nn.Linear), "make_feedback has looked at it"
        units, like = output.out_features + self.options.auxiliary, output.weight
        # Without drawing weights for it: measuring angles makes this layer again.
        made = nn.utils.skip_init(nn.Linear, output.in_features, units, device=like.device, dtype=like.dtype)
        wide = cast(nn.Linear, made)
        with torch.no_grad():
            wide.weight.copy_(torch.cat([output.weight, self.auxiliary.weight]))
        return nn.Sequential(*before, wide)

    def activation(self, n: int, output: Tensor, s_in: Tensor) -> Tensor:
        if n < self.network.depth:
            return output
        before = nn.Sequential(*layer_operations(self.network[n])[:-1])
        return torch.cat([self.task.view(output), self.auxiliary(before(s_in)).tanh()], 1)

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        z = activations.s[-1][:, self.network.num_classes :]
        return torch.cat([super().first_target(activations, y), z], 1)
