"""From the VAE's posterior to the latents of the transformer.

Shapes: B clips, Z latent channels, T frames, H height, W width (latent cells).
"""

import numpy as np

from .models import VAEConfig


def draw_latents(moments_BZTHW: np.ndarray, noise_BZTHW: np.ndarray, config: VAEConfig) -> np.ndarray:
    """A draw from the posterior with this noise, as the transformer sees it: (z - shift) * scale.

    Args:
        moments_BZTHW: 2Z channels, means before log variances.
    """
    mean, logvar = np.split(moments_BZTHW, 2, axis=1)
    z = mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * noise_BZTHW
    scale, shift = (np.asarray(x, np.float32).reshape(1, -1, 1, 1, 1) for x in (config.scale, config.shift))
    return (z - shift) * scale
