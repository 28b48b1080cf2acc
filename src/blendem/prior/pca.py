"""Principal components of galaxy stamps under the eight symmetries."""

import numpy as np
from jaxtyping import Float

from blendem.prior.gaussian import Basis
from blendem.prior.symmetry import N_SYMMETRIES, symmetries

OVERSAMPLING = 24  # extra directions of the randomised range finder
POWER_STEPS = 4
# Two eigenvalues closer than this are taken for a degenerate pair (the symmetry group of the
# square has a two-dimensional representation), which a cut must not separate.
PAIR_TOLERANCE = 2e-3


def normalise_stamps(
    stamps: Float[np.ndarray, "n band y x"],
    reference: int,
    jitter: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "n band y x"]:
    """Give each stamp unit flux in the reference band, times a log-normal jitter.

    The jitter is as wide as the errors of the amplitudes that a fit will use, so that the
    posterior and not the amplitude decides the flux. Its median is 1.

    Args:
        stamps: Galaxy stamps, any positive flux.
        reference: Index of the reference band.
        jitter: Standard deviation of ln(amplitude).
        rng: Generator of the jitter.

    Raises:
        ValueError: If a stamp has no positive flux in the reference band.
    """
    flux = stamps[:, reference].sum((-2, -1), dtype=np.float64)
    if not (flux > 0).all():
        raise ValueError(
            f"{int((~(flux > 0)).sum())} of {len(stamps)} training stamps have no positive"
            f" flux in reference band {reference}; draw them again without them."
        )
    scale = np.exp(rng.normal(0.0, jitter, len(stamps))) / flux
    return (stamps * scale[:, None, None, None]).astype(np.float32)


def fit_basis(
    stamps: Float[np.ndarray, "n band y x"],
    modes: int,
    *,
    bands: tuple[str, ...],
    psf_sigma: float,
    pixel_scale: float,
    rng: np.random.Generator,
) -> Basis:
    """Principal components of `stamps` and all their symmetric copies.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011, SIAM Rev. 53, 217). The
    span of the result is invariant under the symmetries: where the cut would separate a
    degenerate pair one mode less is kept.

    Args:
        stamps: Stamps of unit reference flux with their jitter.
        modes: Wanted number of modes.
        bands, psf_sigma, pixel_scale: Recorded in the basis.
        rng: Generator of the random start.

    Raises:
        ValueError: If there are too few stamps for that many modes.
    """
    n = len(stamps)
    shape = stamps.shape[1:]
    if modes + OVERSAMPLING > min(n * N_SYMMETRIES, int(np.prod(shape))):
        raise ValueError(
            f"{n} training stamps of {shape} cannot carry {modes} modes; raise stamps.n or"
            " lower prior.modes."
        )
    mean = np.mean([np.mean(t, axis=0) for t in symmetries(stamps)], axis=0)
    flat = (stamps - mean).reshape(n, -1)

    def apply(q):  # symmetrised covariance times q, without copying the stamps
        out = np.zeros_like(q)
        for index, t in enumerate(symmetries(q.T.reshape(-1, *shape))):
            turned = np.ascontiguousarray(t).reshape(q.shape[1], -1)
            image = (turned @ flat.T) @ flat
            out += _undo(index, image.reshape(-1, *shape)).reshape(q.shape[1], -1).T
        return out / (n * N_SYMMETRIES)

    q = rng.normal(size=(flat.shape[1], modes + OVERSAMPLING)).astype(flat.dtype)
    for _ in range(POWER_STEPS):
        q, _ = np.linalg.qr(apply(q))
    image = apply(q)
    values, vectors = np.linalg.eigh((q.T @ image).astype(np.float64))
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    keep = modes
    while (
        keep > 1 and values[keep - 1] - values[keep] < PAIR_TOLERANCE * values[keep - 1]
    ):
        keep -= 1
    components = (q @ vectors[:, :keep].astype(q.dtype)).T
    total = float(np.mean(np.sum(flat.astype(np.float64) ** 2, axis=1)))
    scaled = components * np.sqrt(values[:keep])[:, None]
    return Basis(
        mean=mean.astype(np.float32),
        modes=scaled.reshape(keep, *shape).astype(np.float32),
        eigenvalues=values[:keep].astype(np.float32),
        residual=np.asarray(total - values[:keep].sum(), np.float32),
        psf_sigma=np.asarray(psf_sigma, np.float32),
        pixel_scale=np.asarray(pixel_scale, np.float32),
        bands=tuple(bands),
    )


def fit_moments(
    basis: Basis, stamps: Float[np.ndarray, "n band y x"]
) -> tuple[Float[np.ndarray, " mode"], Float[np.ndarray, "mode mode"]]:
    """Mean and covariance of z over `stamps` and their symmetric copies."""
    z = np.concatenate(
        [np.asarray(basis.encode(np.ascontiguousarray(t))) for t in symmetries(stamps)]
    ).astype(np.float64)
    return z.mean(axis=0), np.cov(z.T, bias=True)


def _undo(index: int, images: np.ndarray) -> np.ndarray:
    """Invert symmetry number `index` of `symmetries`."""
    turns, reflected = divmod(index, 2)
    if reflected:
        images = images[..., ::-1]
    return np.ascontiguousarray(np.rot90(images, -turns, (-2, -1)))
