"""Losses that train feedback weights, as pure functions of modules and tensors.

Each is a literal transcription of its equation and is the specification that faster forms are tested against. For all
of them: features are summed (but averaged in :func:`drl_loss`), samples are averaged; the forward layer is evaluated
without gradients, so gradients reach the feedback weights of the one layer and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dtp.feedback.context import Context
from dtp.feedback.layers import forward_with_context
from dtp.feedback.operations import Routing


def per_sample_dot(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the batch of the inner products of samples: (B, *shape), (B, *shape) -> ()."""
    return (a * b).sum() / a.shape[0]


def ldrl_loss(
    layer: nn.Module,
    feedback: nn.Module,
    s_in: Tensor,
    s_out: Tensor,
    context: Context,
    noise_in: Tensor,
    noise_out: Tensor,
    *,
    routing: Routing = "noisy",
    noise_samples: int = 1,
    paper_scale: float | None = None,
) -> Tensor:
    """Local difference reconstruction loss of one layer (Ernoult et al. 2022).

    With r = G(s_n; c), r_eps = G(F(s_{n-1} + eps); c_eps), r_eta = G(s_n + eta; c)::

        L = -2 <eps, r_eps - r> + |r_eta - r|^2

    which is the published code's scale; the paper's is this divided by 2 sigma^2. For small noise its expectation is
    sigma^2 (|J_G - J_F^T|^2 - |J_F|^2): the value is negative at the optimum and is no reconstruction error.

    Args:
        layer: forward layer F_n; its weights receive no gradient.
        feedback: feedback layer G_n; its weights receive gradients through r_eps, r_eta and r.
        s_in: (B, *in), activation s_{n-1}. No gradient.
        s_out: (B, *out), activation s_n = F_n(s_{n-1}). No gradient.
        context: context of that clean pass.
        noise_in: (m B, *in), eps, standard deviation sigma; sample-major: the first B rows are the first noise sample.
        noise_out: (m B, *out), eta, likewise.
        routing: switches of r_eps: its own noisy pass's (``"noisy"``, published) or the clean ones (``"fixed"``).
        noise_samples: m; the m samples share r and are averaged.
        paper_scale: sigma, to divide by 2 sigma^2; None for the published code's scale.

    Returns:
        Scalar, mean over samples and noise samples.
    """
    s_in, s_out = s_in.detach(), s_out.detach()
    clean = context.repeat(noise_samples)
    with torch.no_grad():
        noisy_in = repeat_samples(s_in, noise_samples) + noise_in
        noisy_out, noisy_context = forward_with_context(layer, noisy_in, given=clean, routing=routing)
    r = repeat_samples(feedback(s_out, context), noise_samples)
    r_eps = feedback(noisy_out, noisy_context)
    r_eta = feedback(repeat_samples(s_out, noise_samples) + noise_out, clean)
    loss = -2 * per_sample_dot(noise_in, r_eps - r) + per_sample_dot(r_eta - r, r_eta - r)
    return loss if paper_scale is None else loss / (2 * paper_scale**2)


def reconstruction_loss(
    layer: nn.Module,
    feedback: nn.Module,
    s_in: Tensor,
    context: Context,
    noise_in: Tensor,
    *,
    target: Literal["noisy", "clean"] = "noisy",
    noise_samples: int = 1,
    activation: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Reconstruction loss |G(F(v)) - target|^2 of one layer, v = s_{n-1} + eps (Lee et al. 2015, eq. 13).

    Args:
        layer: forward layer F_n; no gradient.
        feedback: feedback layer G_n; its weights receive gradients.
        s_in: (B, *in), s_{n-1}. No gradient.
        context: context of the clean pass.
        noise_in: (m B, *in), eps, sample-major.
        target: ``"noisy"`` reconstructs v (noise-preserving: Lee, Bartunov's DTP), ``"clean"`` reconstructs s_{n-1}
            (denoising: Bartunov's SDTP).
        noise_samples: m.
        activation: ``activation(F(v), v)`` is what the feedback is given, where that is not F(v) itself.

    Returns:
        Scalar, mean over samples and noise samples.
    """
    clean = repeat_samples(s_in.detach(), noise_samples)
    with torch.no_grad():
        noisy = clean + noise_in
        out, noisy_context = forward_with_context(layer, noisy, given=context.repeat(noise_samples))
        out = out if activation is None else activation(out, noisy)
    error = feedback(out, noisy_context) - (noisy if target == "noisy" else clean)
    return per_sample_dot(error, error)


def drl_loss(
    s_in: Tensor,
    noise_in: Tensor,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    *,
    scale: float,
    noise_samples: int = 1,
) -> Tensor:
    """Difference reconstruction loss of one hidden activation (Meulemans et al. 2020, eq. 14 and its direct form).

    With v = s_{n-1} + eps, y the network's output for v, and r what the rule's targets would make of y as the target
    of the output::

        L = 1 / sigma^2 mean (r - v)^2

    over all elements. It is the noisy v that is to come back. For small noise its minimiser makes the whole feedback
    path a damped pseudo-inverse of the Jacobian d s_N / d s_{n-1}.

    Args:
        s_in: (B, *in), s_{n-1}. No gradient.
        noise_in: (m B, *in), eps, sample-major.
        forward: v (m B, *in) to the output (m B, *out); called without gradients.
        backward: the output to r (m B, *in); its feedback weights receive gradients.
        scale: sigma.
        noise_samples: m.

    Returns:
        Scalar, mean over samples, features and noise samples.
    """
    with torch.no_grad():
        v = repeat_samples(s_in.detach(), noise_samples) + noise_in
        y = forward(v)
    return ((backward(y) - v) ** 2).mean() / scale**2


def repeat_samples(x: Tensor, samples: int) -> Tensor:
    """(B, ...) to (m B, ...), sample-major."""
    return x if samples == 1 else x.repeat(samples, *(1 for _ in x.shape[1:]))
