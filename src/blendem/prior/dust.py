"""Dust in front of galaxies: the law, simulated maps of attenuation, and a prior of them.

An attenuated galaxy is `x_b(p) 10^(-0.4 k_b A(p))`, with `A >= 0` the attenuation in the rest-frame
V band [mag] and `k_b = A_b / A_V` the law. Maps are a function of a field in a linear basis, the
coordinates of which have a mixture of Gaussians as prior, as those of galaxies have: galaxy and
dust have a prior each, and only the data couple them (Siegel & Melchior, arXiv 2411.08111).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter

from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture_fit import fit_mixture
from blendem.prior.pca import Metric, fit_basis, fit_moments
from blendem.prior.symmetry import symmetries

R_V = 4.05  # Calzetti et al. 2000, eq. 5
CALZETTI_RANGE, CALZETTI_BREAK = (120.0, 2200.0), 630.0  # [nm]
V_BAND = 550.0  # [nm]
MAGNITUDE = 0.4 * np.log(10)  # 10^(-0.4 m) = exp(-MAGNITUDE m)
# Magnitude of unit amplitude, the same for all galaxies: that of a catalog would come from dimmed
# pixels, and the prior of A_V would enter twice. Number counts are in the prior of galaxies.
UNIT_MAG = 22.0
LINKS = ("softplus", "linear")
A_MIN = 0.02  # attenuation that the softplus basis still tells from none [mag]
# Mean attenuation of a map within its half-light ellipse, log-uniform [mag].
A_RANGE = (0.1, 2.0)
# Dust scale length over that of the stars: 1.4 (Xilouris et al. 1999, A&A 344, 868).
LENGTH_RATIO, LENGTH_SCATTER = 1.4, 0.25
KINDS = (0.35, 0.25, 0.40)  # shares of smooth discs, lanes, spirals; our choice
CLUMPS = (0.1, 0.5)  # sd of ln(A) in clumps; our choice
# Least light that counts in the choice of the basis, over that of the brightest pixel.
LEAST_LIGHT = 1e-3


def calzetti(
    wavelength: Float[np.ndarray, "*n"], redshift: float = 0.0
) -> Float[np.ndarray, "*n"]:
    """Attenuation over that in V, of the starburst law.

    Args:
        wavelength: Observed [nm].
        redshift: Of the dust.

    Raises:
        ValueError: If a rest-frame wavelength is outside 120-2200 nm, where there is no law.

    References:
        Calzetti et al. 2000, ApJ 533, 682, eq. 4.
    """
    rest = np.asarray(wavelength, float) / (1 + redshift)
    low, high = CALZETTI_RANGE
    if not ((rest >= low) & (rest <= high)).all():
        raise ValueError(
            f"Calzetti's law is for {low:g} to {high:g} nm in the rest frame, got"
            f" {rest.min():.4g} to {rest.max():.4g}; leave out bands, or lower the redshift"
        )
    inverse = 1000 / rest  # [1 / micrometre]
    red = -1.857 + 1.040 * inverse
    blue = -2.156 + 1.509 * inverse - 0.198 * inverse**2 + 0.011 * inverse**3
    return 1 + 2.659 * np.where(rest < CALZETTI_BREAK, blue, red) / R_V


def greatest_redshift(wavelength: Float[np.ndarray, " band"]) -> float:
    """Up to where the law reaches the bluest band."""
    return float(np.min(wavelength)) / CALZETTI_RANGE[0] - 1


def attenuation_law(
    wavelength: Float[np.ndarray, " band"], redshift: Float[np.ndarray, " source"]
) -> tuple[Float[np.ndarray, "source band"], Float[np.ndarray, "source band"]]:
    """Law `k_b = A_b / A_V` of dust at every redshift, and `ln(lambda_rest / 550 nm)`.

    Raises:
        ValueError: As `calzetti`.
    """
    law = [calzetti(wavelength, z) for z in redshift]
    rest = np.asarray(wavelength) / (1 + np.asarray(redshift, float)[:, None])
    return np.reshape(law, rest.shape), np.log(rest / V_BAND)


def dim(
    stamps: Float[np.ndarray, "*n band y x"],
    maps: Float[np.ndarray, "*n y x"],
    law: Float[np.ndarray, "*#n band"],
) -> Float[np.ndarray, "*n band y x"]:
    """Stamps `x_b 10^(-0.4 k_b A)` behind dust."""
    depth = np.asarray(law)[..., None, None] * np.asarray(maps)[..., None, :, :]
    return stamps * np.exp(-MAGNITUDE * depth)


def unit_flux(magzero: float) -> float:
    """Amplitude of all galaxies, in the flux unit of this zero point."""
    return 10 ** (-0.4 * (UNIT_MAG - magzero))


def draw_dust_maps(
    half_light_radius: Float[np.ndarray, " n"],
    axis_ratio: Float[np.ndarray, " n"],
    angle: Float[np.ndarray, " n"],
    rng: np.random.Generator,
    *,
    stamp: int,
    pixel_scale: float,
    psf_sigma: float,
) -> Float[np.ndarray, "n stamp stamp"]:
    """Draw maps of A_V [mag]: smooth discs, lanes and spirals, with clumps.

    Args:
        half_light_radius: Of the stars of each map's galaxy, circularised [arcsec].
        axis_ratio: Of its disc.
        angle: Of its major axis from +x towards +y [radian].
        rng: Random generator; one child per map.
        stamp: Side of the maps [pixel].
        pixel_scale: Side of a pixel [arcsec].
        psf_sigma: Sigma of the Gaussian that maps are smoothed with [pixel]: what dims the
            model image is the dust at the resolution of the model.

    Returns:
        Maps, centred on the stamp. Their mean within the half-light ellipse is log-uniform in
        `A_RANGE`.
    """
    maps = np.zeros((len(axis_ratio), stamp, stamp))
    line = np.arange(stamp) - stamp // 2
    y, x = np.meshgrid(line, line, indexing="ij")
    for k, child in enumerate(rng.spawn(len(maps))):
        q = float(axis_ratio[k])
        radius = float(half_light_radius[k]) / pixel_scale / np.sqrt(q)  # major [pixel]
        c, s = np.cos(angle[k]), np.sin(angle[k])
        u, v = c * x + s * y, (c * y - s * x) / q  # in the plane of the disc
        r = np.hypot(u, v)
        ratio = LENGTH_RATIO * np.exp(LENGTH_SCATTER * child.standard_normal())
        length = max(ratio * radius / 1.678, 1.0)
        kind = np.searchsorted(np.cumsum(KINDS)[:-1], child.random(), side="right")
        ln_a = -r / length
        offset, width, pitch, phase, contrast, scatter = child.random(6)
        if kind == 1:
            # In the foreground half of an inclined disc, along its major axis.
            w = max(length * (0.15 + 0.35 * width) * q, 1.0) / q
            away = (v - (2 * offset - 1) * 0.5 * length) / w
            ln_a = -np.abs(u) / (1.5 * length) - 0.5 * away**2
        elif kind == 2:
            turn = np.log(np.maximum(r, 0.5) / length) / np.tan(0.2 + 0.4 * pitch)
            arms = np.cos(2 * (np.arctan2(v, u) - turn + np.pi * phase))
            # Arms are as one below their own width.
            ln_a = ln_a + (0.3 + 0.9 * contrast) * arms * r / (r + 0.5 * length)
        sd = CLUMPS[0] + (CLUMPS[1] - CLUMPS[0]) * scatter
        ln_a = ln_a + sd * _field(stamp, max(0.35 * radius, 1.0), child)
        dust = gaussian_filter(np.exp(ln_a - ln_a.max()), psf_sigma, mode="nearest")
        mean = dust[r <= max(radius, 1.0)].mean()
        low, high = np.log(A_RANGE)
        maps[k] = dust / mean * np.exp(low + (high - low) * child.random())
    return maps


def _field(side, scale, rng):
    """Gaussian random field of unit variance, smooth below `scale` [pixel]."""
    k2 = (2 * np.pi) ** 2 * (
        np.fft.fftfreq(2 * side)[:, None] ** 2 + np.fft.rfftfreq(2 * side)[None] ** 2
    )
    white = np.fft.rfft2(rng.standard_normal((2 * side, 2 * side)))
    field = np.fft.irfft2(white * np.exp(-0.5 * scale**2 * k2))[:side, :side]
    # Sum of the squared kernel: 1 / (4 pi scale^2).
    return field * np.sqrt(4 * np.pi) * scale


class DustPrior(eqx.Module):
    """Prior of maps of A_V: `A = link(mean + sum_i z_i modes_i)`.

    Attributes:
        latent: Prior of the coordinates z, with a basis of one band.
        link: "softplus": `A = ln(1 + exp(field))`, positive; "linear": A is the field. Static.

    Raises:
        ValueError: If the link is unknown.
    """

    latent: LatentPrior
    link: str = eqx.field(static=True, default="softplus")

    def __check_init__(self):
        if self.link not in LINKS:
            raise ValueError(f"`link` must be one of {LINKS}, got {self.link!r}")

    def attenuation(
        self, z: Float[Array | np.ndarray, "*n mode"]
    ) -> Float[Array | np.ndarray, "*n stamp stamp"]:
        """Maps of A_V [mag] from coordinates z."""
        return LINK[self.link](self.latent.basis.decode(z)[..., 0, :, :])


def field_of(
    maps: Float[np.ndarray, "*n stamp stamp"], link: str
) -> Float[np.ndarray, "*n 1 stamp stamp"]:
    """The field that a link turns into these maps, but for `A_MIN`; float32."""
    maps = np.asarray(maps, float)
    if link == "softplus":
        maps = np.log(np.expm1(np.maximum(maps, A_MIN)))
    return maps[..., None, :, :].astype(np.float32)


LINK: dict[str, Callable] = {"softplus": jax.nn.softplus, "linear": jnp.asarray}


def fit_latent(
    basis: Basis,
    stamps: Float[np.ndarray, "n band y x"],
    components: int,
    iterations: int,
    shrink: float = 0.0,
) -> LatentPrior:
    """Moments and mixture of the coordinates of stamps and their symmetric copies.

    Args:
        basis: Of z.
        stamps: In the unit of the basis.
        components, iterations, shrink: As in `fit_mixture`.
    """
    gaussian = GaussianPrior.from_moments(basis, *fit_moments(basis, stamps))
    z = [np.asarray(basis.encode(np.ascontiguousarray(t))) for t in symmetries(stamps)]
    step = np.concatenate(z).astype(float) - gaussian.mean
    e = np.linalg.solve(np.asarray(gaussian.cholesky), step.T).T
    return LatentPrior(gaussian, fit_mixture(e, components, iterations, shrink=shrink))


def fit_galaxy_prior(
    stamps: Float[np.ndarray, "n band y x"],
    modes: int,
    *,
    bands: tuple[str, ...],
    metric: Metric,
    pixel_scale: float,
    psf_sigma: float,
    rng: np.random.Generator,
    components: int = 16,
    iterations: int = 20,
    shrink: float = 30.0,
) -> LatentPrior:
    """Prior of galaxies without dust: of their fluxes, colours and shapes.

    Args:
        stamps: Without dust, over `unit_flux`.
        modes: Number of modes.
        bands, pixel_scale, psf_sigma: Recorded in the basis.
        metric: As in `fit_basis`.
        rng: Generator of the start of the range finder.
        components, iterations, shrink: Of the mixture.
    """
    basis = fit_basis(
        stamps,
        modes,
        bands=bands,
        psf_sigma=psf_sigma,
        pixel_scale=pixel_scale,
        rng=rng,
        metric=metric,
    )
    return fit_latent(basis, stamps, components, iterations, shrink)


def fit_dust_prior(
    maps: Float[np.ndarray, "n stamp stamp"],
    light: Float[np.ndarray, "stamp stamp"],
    modes: int,
    *,
    pixel_scale: float,
    psf_sigma: float,
    rng: np.random.Generator,
    link: str = "softplus",
    components: int = 16,
    iterations: int = 20,
    shrink: float = 30.0,
) -> DustPrior:
    """Principal components of maps where there is light, and a mixture of their coordinates.

    Args:
        maps: A_V [mag].
        light: Mean image of galaxies, any unit: what is dimmed weighs the pixels of the basis.
        modes: Number of modes.
        pixel_scale, psf_sigma: Recorded in the basis.
        rng: Generator of the start of the range finder.
        link: As in `DustPrior`.
        components, iterations, shrink: Of the mixture.
    """
    light = np.mean([np.ascontiguousarray(t) for t in symmetries(light)], axis=0)
    weight = np.sqrt(np.maximum(light / light.max(), LEAST_LIGHT)).astype(np.float32)
    fields = field_of(maps, link)
    seen = fit_basis(
        fields * weight,
        modes,
        bands=("A_V",),
        psf_sigma=psf_sigma,
        pixel_scale=pixel_scale,
        rng=rng,
    )
    basis = Basis(
        mean=seen.mean / weight,
        modes=seen.modes / weight,
        eigenvalues=seen.eigenvalues,
        residual=seen.residual,
        psf_sigma=seen.psf_sigma,
        pixel_scale=seen.pixel_scale,
        bands=seen.bands,
        analysis=np.asarray(seen.dual) * weight,
    )
    return DustPrior(fit_latent(basis, fields, components, iterations, shrink), link)
