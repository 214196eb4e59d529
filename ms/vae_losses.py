"""What the video VAE is trained to minimise: WF-VAE (arXiv:2411.17459, section 3.4) on VQGAN's recipe
(arXiv:2012.09841).

The adversarial term is weighted so that its gradient at the decoder's last convolution is as long as the
reconstruction's. Both gradients by the reconstruction are taken once, combined there, and sent through the
VAE in a single backward pass.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from typing import Any

from mindspore import Tensor, nn

from common.vae_training import VAELossConfig

from . import ops, runtime
from .discriminator import Discriminator
from .parallel import Mean
from .posterior import kl_to_normal
from .vae import WFVAE


class PixelLoss(nn.Cell):
    """Error of the reconstruction as a negative log likelihood, summed over a frame."""

    def __init__(self, config: VAELossConfig, lpips: nn.Cell | None):
        super().__init__(auto_prefix=False)
        self.squared = config.pixel == "l2"
        self.perceptual_weight = config.perceptual_weight if lpips is not None else 0.0
        self.lpips: Any = lpips

    def construct(self, recon_BCTHW: Tensor, target_BCTHW: Tensor, logvar: Tensor) -> tuple:
        """Negative log likelihood per frame; and without logvar: all of the error, pixels', LPIPS'."""
        B, C, T, H, W = target_BCTHW.shape
        error = target_BCTHW - recon_BCTHW
        error = error * error if self.squared else ops.abs(error)
        perceptual = error.mean() * 0.0
        if self.perceptual_weight > 0:
            perceptual = self.lpips(target_BCTHW, recon_BCTHW).mean()
        values = C * H * W  # of a frame, each of which has the frame's perceptual distance added
        total = (error.mean() + self.perceptual_weight * perceptual) * values
        return total * ops.exp(-logvar) + logvar * values, total, error.mean(), perceptual


class AdversarialLoss(nn.Cell):
    """How fake a reconstruction looks."""

    def __init__(self, discriminator: Discriminator):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator

    def construct(self, recon_BCTHW: Tensor) -> tuple:
        """Minus the mean logit, and the statistics of the discriminator's norms."""
        logits, statistics = self.discriminator(recon_BCTHW, True)
        return (-ops.to_float32(logits).mean(), *statistics)


class LastLayer(nn.Cell):
    """The decoder's last convolution as a function of its weight, for the gradient there."""

    def __init__(self, vae: WFVAE):
        super().__init__(auto_prefix=False)
        self.decoder = vae.decoder

    def construct(self, weight: Tensor, h_BCTHW: Tensor, grad_BCTHW: Tensor) -> tuple:
        """The pixels' product with a gradient; the rest of the pixels does not depend on the weight."""
        x_BCTHW = self.decoder.last_pixels(ops.cast_like(weight, h_BCTHW), h_BCTHW)
        return (ops.to_float32(x_BCTHW) * grad_BCTHW).sum(), x_BCTHW


class GeneratorLoss(nn.Cell):
    """The VAE's loss on a batch of clips."""

    terms = (
        "loss",
        "nll",
        "pixel",
        "perceptual",
        "kl",
        "wavelet",
        "adversarial",
        "adversarial_weight",
        "logvar",
    )

    def __init__(
        self,
        config: VAELossConfig,
        vae: WFVAE,
        discriminator: Discriminator | None,
        lpips: nn.Cell | None,
        mean_over_ranks: Mean,
        dtype: str,
    ):
        super().__init__(auto_prefix=False)
        self.config = config
        self.vae = vae
        self.logvar = ops.parameter(())
        self.pixel_loss = PixelLoss(config, lpips)
        self.discriminator = discriminator
        if discriminator is not None:
            self.adversarial_loss = AdversarialLoss(discriminator)
            self.last_layer = LastLayer(vae)
        self.mean_over_ranks = mean_over_ranks
        self.dtype = runtime.DTYPES[dtype]
        # the adversarial gradient by one pixel is below what float16 can hold
        self.head_dtype = runtime.DTYPES["float32" if dtype == "float16" else dtype]

    def construct(self, x_BCTHW: Tensor, noise_BZTHW: Tensor, disc_factor: Tensor, scale: Tensor) -> tuple:
        """(scale * surrogate, terms, *statistics).

        The surrogate has the gradient of the loss, not its value, which is the first of `terms`; statistics
        are those of the discriminator's norms.

        Args:
            x_BCTHW: clips in [-1, 1], float32.
            noise_BZTHW: of the posterior sample.
            disc_factor: 0 leaves the adversarial term out.
        """
        moments, h, low, bands = self.vae.unrolled(ops.to_dtype(x_BCTHW, self.dtype), noise_BZTHW)
        recon = ops.to_float32(self.vae.decoder.head(h, low, True))
        (nll, error, pixel, perceptual), flow = runtime.input_gradient(
            self.pixel_loss, recon, x_BCTHW, self.logvar
        )
        kl = kl_to_normal(moments).sum() / x_BCTHW.shape[0]
        wavelet = self.wavelet_loss(x_BCTHW, bands)
        adversarial, weight, statistics = nll * 0.0, nll * 0.0, ()
        if self.discriminator is not None:
            (adversarial, *statistics), fake_flow = runtime.input_gradient(
                self.adversarial_loss, ops.to_dtype(recon, self.head_dtype)
            )
            fake_flow = ops.to_float32(fake_flow)
            weight = disc_factor * self.adaptive_weight(ops.detach(h), flow, fake_flow)
            flow = flow + weight * fake_flow

        config = self.config
        regular = config.kl_weight * kl + config.wavelet_weight * wavelet
        surrogate = (recon * ops.detach(flow)).sum() + regular
        if config.learn_logvar:
            values = x_BCTHW.shape[1] * x_BCTHW.shape[3] * x_BCTHW.shape[4]
            surrogate = surrogate + error * ops.exp(-self.logvar) + self.logvar * values
        loss = nll + regular + weight * adversarial
        terms = (loss, nll, pixel, perceptual, kl, wavelet, adversarial, weight, self.logvar)
        return scale * surrogate, ops.stack([ops.detach(term) for term in terms], 0), *statistics

    def wavelet_loss(self, x_BCTHW: Tensor, bands: tuple) -> Tensor:
        """Absolute difference between the coefficients of the clip and those the decoder made, summed."""
        if self.config.wavelet_weight == 0:
            return bands[0].sum() * 0.0
        _, *wanted = self.vae.encoder.bands(x_BCTHW, True)
        l1 = ops.abs(wanted[0] - ops.to_float32(bands[0])).sum()
        l2 = ops.abs(wanted[1] - ops.to_float32(bands[1])).sum()
        return (l1 + l2) / x_BCTHW.shape[0]

    def adaptive_weight(self, h_BCTHW: Tensor, flow_BCTHW: Tensor, fake_flow_BCTHW: Tensor) -> Tensor:
        """How much the adversarial gradient must grow to be as long as the other at the last layer."""
        h = ops.to_dtype(h_BCTHW, self.head_dtype)
        ratio = self.last_layer_length(h, flow_BCTHW) / (self.last_layer_length(h, fake_flow_BCTHW) + 1e-4)
        return ops.clamp(ratio, 0.0, 1e4) * self.config.disc_weight

    def last_layer_length(self, h_BCTHW: Tensor, flow_BCTHW: Tensor) -> Tensor:
        """Length of the gradient at the last convolution, of all ranks, for a gradient at the pixels."""
        weight = self.vae.decoder.conv_out.weight
        _, grad = runtime.input_gradient(self.last_layer, weight, h_BCTHW, flow_BCTHW)
        grad = self.mean_over_ranks(grad)
        return ops.sqrt((grad * grad).sum())

    def after(self, statistics: tuple, finite: Tensor) -> None:
        """What an update changes besides parameters."""
        if self.discriminator is not None:
            self.discriminator.track(statistics, finite)


class DiscriminatorLoss(nn.Cell):
    """How badly real and reconstructed clips are told apart."""

    terms = ("disc_loss", "logits_real", "logits_fake")

    def __init__(self, config: VAELossConfig, discriminator: Discriminator):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator
        self.hinge = config.disc_loss == "hinge"

    def construct(self, real_BCTHW: Tensor, fake_BCTHW: Tensor, disc_factor: Tensor, scale: Tensor) -> tuple:
        """(scale * loss, terms, *statistics), first the real clips' statistics, then the fake ones'."""
        real, real_statistics = self.discriminator(real_BCTHW, True)
        fake, fake_statistics = self.discriminator(fake_BCTHW, True)
        real, fake = ops.to_float32(real), ops.to_float32(fake)
        if self.hinge:
            loss = ops.relu(1.0 - real).mean() + ops.relu(1.0 + fake).mean()
        else:
            loss = ops.softplus(-real).mean() + ops.softplus(fake).mean()
        loss = disc_factor * 0.5 * loss
        terms = ops.stack([ops.detach(term) for term in (loss, real.mean(), fake.mean())], 0)
        return scale * loss, terms, *real_statistics, *fake_statistics

    def after(self, statistics: tuple, finite: Tensor) -> None:
        """What an update changes besides parameters."""
        half = len(statistics) // 2
        self.discriminator.track(statistics[:half], finite)
        self.discriminator.track(statistics[half:], finite)


class DiscriminatorPhase(nn.Cell):
    """The discriminator's loss on clips and what the VAE makes of them."""

    terms = DiscriminatorLoss.terms

    def __init__(self, generator: GeneratorLoss, loss: DiscriminatorLoss):
        super().__init__(auto_prefix=False)
        self.generator = generator
        self.loss = loss

    def construct(self, x_BCTHW: Tensor, noise_BZTHW: Tensor, disc_factor: Tensor, scale: Tensor) -> tuple:
        """As DiscriminatorLoss, of GeneratorLoss's arguments."""
        vae, generator = self.generator.vae, self.generator
        _, h, low, _ = vae.unrolled(ops.to_dtype(x_BCTHW, generator.dtype), noise_BZTHW)
        fake = ops.to_dtype(ops.detach(vae.decoder.head(h, low, True)), generator.head_dtype)
        return self.loss(ops.to_dtype(x_BCTHW, generator.head_dtype), fake, disc_factor, scale)

    def after(self, statistics: tuple, finite: Tensor) -> None:
        """What an update changes besides parameters."""
        self.loss.after(statistics, finite)
