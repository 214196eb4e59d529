"""The VAE's posterior, a Gaussian per latent element, and the way back from the transformer's latents.

Shapes: moments (B,2Z,T,H,W), means before log variances; Z latent channels.
"""

from mindspore import Tensor

from . import ops

LOG_2PI = 1.8378770664093453


def split_moments(moments: Tensor) -> tuple:
    """Mean and log variance (clamped to [-30, 20]) of the posterior."""
    mean, logvar = ops.chunk(moments, 2, 1)
    return mean, ops.clamp(logvar, -30.0, 20.0)


def posterior_sample(moments: Tensor, noise_BCTHW: Tensor) -> Tensor:
    """mean + exp(logvar / 2) * noise."""
    mean, logvar = split_moments(moments)
    return mean + ops.exp(0.5 * logvar) * noise_BCTHW


def kl_to_normal(moments: Tensor) -> Tensor:
    """KL divergence of the posterior from a standard normal, per latent element (B,Z,T,H,W)."""
    mean, logvar = split_moments(moments)
    return 0.5 * (mean * mean + ops.exp(logvar) - 1.0 - logvar)


def kl_between(moments: Tensor, other: Tensor) -> Tensor:
    """KL divergence of one posterior from another, per latent element."""
    mean, logvar = split_moments(moments)
    other_mean, other_logvar = split_moments(other)
    difference = mean - other_mean
    ratio = (difference * difference + ops.exp(logvar)) * ops.exp(-other_logvar)
    return 0.5 * (ratio - 1.0 - logvar + other_logvar)


def nll(moments: Tensor, sample_BCTHW: Tensor) -> Tensor:
    """Negative log likelihood of a latent under the posterior, per latent element."""
    mean, logvar = split_moments(moments)
    difference = sample_BCTHW - mean
    return 0.5 * (LOG_2PI + logvar + difference * difference * ops.exp(-logvar))


def from_latent(x_BCTHW: Tensor, scale_Z: Tensor, shift_Z: Tensor) -> Tensor:
    """The VAE's latents: x / scale + shift, per channel: the way back from common.latents.draw_latents."""
    return x_BCTHW / scale_Z.reshape(1, -1, 1, 1, 1) + shift_Z.reshape(1, -1, 1, 1, 1)
