"""Principal components of galaxy stamps under the eight symmetries."""

from typing import NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Float

from blendem.prior.gaussian import Basis
from blendem.prior.symmetry import N_SYMMETRIES, symmetries

OVERSAMPLING = 24  # extra directions of the randomised range finder
POWER_STEPS = 4
# Two eigenvalues closer than this are taken for a degenerate pair (the symmetry group of the
# square has a two-dimensional representation), which a cut must not separate.
PAIR_TOLERANCE = 2e-3
FLUX_FLOOR = 1e-4  # rms error of a flux that a mode is worth, over the reference flux


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


class Metric(NamedTuple):
    """In which sense the modes are the best: as the data will see the stamps.

    Without it a basis spends its modes on structure that seeing hides, on noisy bands, and on
    compact galaxies; bright, extended ones are then cut short by percents of their flux.

    Attributes:
        blur: Gaussian sigma from the model PSF to the sharpest observed one [model pixel].
        band_weight: One over the noise of each band, any unit, `(band,)`.
        weight: Of each stamp in the second moments, `(n,)`; bright galaxies are seen with
            less noise and need more.
    """

    blur: float
    band_weight: Float[np.ndarray, " band"]
    weight: Float[np.ndarray, " n"]

    def apply(
        self, stamps: Float[np.ndarray, "*n band y x"]
    ) -> Float[np.ndarray, "*n band y x"]:
        """Stamps as an observation sees them; a symmetric operator."""
        side = stamps.shape[-1]
        size = scipy.fft.next_fast_len(side + int(np.ceil(4 * self.blur)), real=True)
        ky, kx = np.fft.fftfreq(size), np.fft.rfftfreq(size)
        k2 = (2 * np.pi) ** 2 * (ky[:, None] ** 2 + kx[None] ** 2)
        kernel = np.exp(-0.5 * self.blur**2 * k2).astype(stamps.dtype)
        seen = np.empty_like(stamps)
        for index in np.ndindex(*stamps.shape[:-3]):  # flat memory
            plane = scipy.fft.rfft2(stamps[index], (size, size)) * kernel
            seen[index] = scipy.fft.irfft2(plane, (size, size))[..., :side, :side]
        return seen * self.band_weight.astype(stamps.dtype)[:, None, None]


def fit_basis(
    stamps: Float[np.ndarray, "n band y x"],
    modes: int,
    *,
    bands: tuple[str, ...],
    psf_sigma: float,
    pixel_scale: float,
    rng: np.random.Generator,
    metric: Metric | None = None,
) -> Basis:
    """Principal components of `stamps` and all their symmetric copies.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011, SIAM Rev. 53, 217). The
    span of the result is invariant under the symmetries: where the cut would separate a
    degenerate pair one mode less is kept. With a metric M, the scores are those of the
    principal components of `M u`, the first along `M mean`, and the modes are the linear
    regression of u on the scores: the mean stamp is in their span, so that changing the
    amplitude of a galaxy stays within the basis.

    Args:
        stamps: Stamps of unit reference flux with their jitter.
        modes: Wanted number of modes.
        bands, psf_sigma, pixel_scale: Recorded in the basis.
        rng: Generator of the random start.
        metric: What counts; None: equal pixels, equal stamps.

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
    flat = stamps - mean
    if metric is not None:
        root = np.sqrt(metric.weight / metric.weight.mean()).astype(flat.dtype)
        flat = metric.apply(flat) * root[:, None, None, None]
    flat = flat.reshape(n, -1)

    def apply(q):  # symmetrised covariance times q, without copying the stamps
        out = np.zeros_like(q)
        for index, t in enumerate(symmetries(q.T.reshape(-1, *shape))):
            turned = np.ascontiguousarray(t).reshape(q.shape[1], -1)
            image = (turned @ flat.T) @ flat
            out += _undo(index, image.reshape(-1, *shape)).reshape(q.shape[1], -1).T
        return out / (n * N_SYMMETRIES)

    first = np.zeros((flat.shape[1], 0), flat.dtype)
    if metric is not None:
        seen = metric.apply(mean.astype(flat.dtype)).reshape(-1, 1)
        first = seen / np.linalg.norm(seen)

    def rest(q):  # orthogonal to the first score
        return q - first @ (first.T @ q)

    q = rng.normal(size=(flat.shape[1], modes + OVERSAMPLING)).astype(flat.dtype)
    for _ in range(POWER_STEPS):
        q, _ = np.linalg.qr(rest(apply(rest(q))))
    values, vectors = np.linalg.eigh((q.T @ apply(q)).astype(np.float64))
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    keep = modes - first.shape[1]
    while (
        keep > 1 and values[keep - 1] - values[keep] < PAIR_TOLERANCE * values[keep - 1]
    ):
        keep -= 1
    components = np.concatenate(
        [first.T, (q @ vectors[:, :keep].astype(q.dtype)).T]
    ).astype(np.float32)
    total = float(np.mean(np.sum(flat.astype(np.float64) ** 2, axis=1)))
    values = values[:keep]
    if metric is not None:
        along = float(np.mean((flat @ first).astype(np.float64) ** 2))
        values = np.concatenate([[along], values])
    root = np.sqrt(values).astype(np.float32)
    if metric is None:
        scaled, analysis = components * root[:, None], None
        scaled = scaled.reshape(len(values), *shape)
    else:
        scaled, analysis = _regress(
            stamps, mean, components.reshape(-1, *shape), root, metric
        )
    return Basis(
        mean=mean.astype(np.float32),
        modes=scaled.astype(np.float32),
        eigenvalues=values.astype(np.float32),
        residual=np.asarray(max(total - values.sum(), 0.0), np.float32),
        psf_sigma=np.asarray(psf_sigma, np.float32),
        pixel_scale=np.asarray(pixel_scale, np.float32),
        bands=tuple(bands),
        analysis=analysis,
    )


def _regress(stamps, mean, components, root, metric):
    """Modes: regression of the stamps on their scores; and the analysis stamps."""
    shape, d = stamps.shape[1:], len(root)
    # The metric is symmetric: scores are inner products with M times the components.
    analysis = metric.apply(components) / root[:, None, None, None]
    analysis = analysis.astype(np.float32)
    flat = analysis.reshape(d, -1)
    weight = (metric.weight / metric.weight.mean()).astype(np.float32)[:, None]
    residual = (stamps - mean).astype(np.float32)
    gram, cross = np.zeros((d, d)), np.zeros((d, flat.shape[1]), np.float32)
    for t in symmetries(residual):
        u = np.ascontiguousarray(t).reshape(len(t), -1)
        scores = u @ flat.T
        gram += scores.T @ (weight * scores)
        cross += (weight * scores).T @ u
    # The first mode is the mean stamp itself, scaled to a score of one.
    lead = mean.reshape(-1) / (flat[0] @ mean.reshape(-1))
    cross = cross - gram[:, :1].astype(np.float32) * lead[None]
    modes = np.zeros_like(flat)
    modes[0] = lead
    modes[1:] = np.linalg.solve(gram[1:, 1:], cross[1:])
    return modes.reshape(d, *shape), analysis


def with_fluxes(
    basis: Basis,
    stamps: Float[np.ndarray, "n band y x"],
    metric: Metric | None = None,
) -> Basis:
    """The basis and modes that make the flux of every stamp exact, at most one per band.

    Principal components care for light where it is bright. Faint wings far out can hold
    several per cent of a flux, differ from galaxy to galaxy, and are then missing in its error. The
    new coordinates are the errors of the fluxes of projected stamps, decorrelated; their modes the
    linear regression on them of what the basis leaves over. They come last, in order
    of their variance.

    Args:
        basis: Of `fit_basis`, from these stamps.
        stamps: As `fit_basis` had them.
        metric: As `fit_basis` had it.
    """
    n, n_bands, *shape = stamps.shape
    weight = np.ones(n) if metric is None else metric.weight / metric.weight.mean()
    weight = weight.astype(np.float32)[:, None]
    modes = np.asarray(basis.modes).reshape(len(basis.modes), -1)
    dual = np.asarray(basis.dual).reshape(modes.shape)
    light = np.asarray(basis.modes, float).sum((-2, -1)).T  # of the modes, by band
    # Inner products with these are errors of fluxes: the sums of pixels less those of the modes.
    analysis = np.repeat(np.eye(n_bands), np.prod(shape), axis=1) - light @ dual
    gram = np.zeros((n_bands, n_bands))
    cross = np.zeros(analysis.shape)
    for t in symmetries((stamps - np.asarray(basis.mean)).astype(np.float32)):
        u = np.ascontiguousarray(t).reshape(n, -1)
        scores = weight * (u @ analysis.T.astype(np.float32))
        gram += scores.T @ (scores / weight)
        cross += scores.T @ u - (scores.T @ (u @ dual.T)) @ modes
    gram, cross = gram / (n * N_SYMMETRIES), cross / (n * N_SYMMETRIES)
    values, vectors = np.linalg.eigh(gram)
    kept = np.flatnonzero(values > FLUX_FLOOR**2)[::-1]
    white = (vectors[:, kept] / np.sqrt(values[kept])).T
    added = (white @ cross).reshape(-1, n_bands, *shape).astype(np.float32)
    seen = added if metric is None else metric.apply(added)
    variance = np.sum(seen.astype(float) ** 2, axis=(1, 2, 3))
    analysis = np.concatenate([dual, white @ analysis]).astype(np.float32)
    return Basis(
        mean=basis.mean,
        modes=np.concatenate([np.asarray(basis.modes), added]),
        eigenvalues=np.concatenate([basis.eigenvalues, variance]).astype(np.float32),
        residual=np.asarray(
            max(float(basis.residual) - variance.sum(), 0.0), np.float32
        ),
        psf_sigma=basis.psf_sigma,
        pixel_scale=basis.pixel_scale,
        bands=basis.bands,
        analysis=analysis.reshape(-1, n_bands, *shape),
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
