"""Training stamps as a prior sees them: unit reference flux, amplitudes and colours jittered."""

import numpy as np
from jaxtyping import Bool, Float

from blendem.prior.pca import normalise_stamps


def prepare_stamps(
    stamps: Float[np.ndarray, "n band y x"],
    reference: int,
    *,
    amplitude_jitter: float,
    colour_jitter: float,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "used band y x"], Bool[np.ndarray, " n"]]:
    """Leave out stamps without reference flux, broaden their colours, normalise them.

    Colours are drawn first: generators that start alike give the same colours, whatever
    the amplitude jitter.

    Args:
        stamps: Galaxy stamps, any flux unit.
        reference: Index of the reference band, whose colour stays.
        amplitude_jitter: Standard deviation of ln(amplitude).
        colour_jitter: Standard deviation of ln(flux) per band.
        rng: Generator of both.

    Returns:
        Stamps of unit reference flux times jitter, and which of the given ones they are.

    Raises:
        ValueError: If no stamp has flux in the reference band.
    """
    used = stamps[:, reference].sum((-2, -1)) > 0
    if not used.any():
        raise ValueError(
            f"none of {len(stamps)} training stamps has flux in reference band"
            f" {reference}; draw others, or choose another infer.reference_band"
        )
    colour = np.exp(rng.normal(0.0, colour_jitter, (used.sum(), stamps.shape[1])))
    colour[:, reference] = 1.0
    stamps = stamps[used] * colour[:, :, None, None].astype(np.float32)
    return normalise_stamps(stamps, reference, amplitude_jitter, rng), used
