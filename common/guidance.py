"""Classifier-free guidance as it was asked for, and the one place that says whether there is any."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guidance:
    """How far a prediction goes from the negative prompt's (scale 0) to the prompt's (1) and beyond
    (arXiv:2207.12598).
    """

    scale: float = 7.5
    rescale: float = 0.0  # share of arXiv:2305.08891, section 3.4, against over-exposure
    below_one: bool = False  # scales under 1 guide too; else they turn guidance off, as in the reference

    @property
    def on(self) -> bool:
        """Whether the negative prompt is seen; without guidance the prompt alone counts, as at scale 1."""
        return self.scale > 1 or (self.below_one and self.scale < 1)
