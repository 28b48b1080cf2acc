"""Maximum a posteriori fits: closed-form profiles by Adam, free pixels by conjugate gradients.

Both are batched by `vmap`: every shape is static, padding sources change nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from blendem.blend import Blend
from blendem.inference.amplitude import Amplitudes, flux_seen
from blendem.inference.statistics import STAR_SPREAD, Statistics
from blendem.morphology import BulgeDisk, Exponential, Sersic
from blendem.observation import chi2_per_band, log_likelihood
from blendem.prior.gaussian import GaussianPrior
from blendem.psf import frequencies, gaussian_transform
from blendem.renderer import Renderer

PROFILES = ("sersic", "exponential", "bulge_disk")
MAX_SHEAR = 0.9
N_RANGE = (0.5, 6.0)
# Priors, as densities of ln R, ln n, g, B/T and (y, x): a MAP depends on that choice. Size
# and index are the COSMOS fits of Leauthaud et al. 2007, ApJS 172, 219 as GalSim ships them
# (i < 23.5: 16/50/84 % of n are 0.73, 1.4, 4.4); the size is widened to reach i = 26.
LN_RADIUS_MEDIAN, LN_RADIUS_SD = -1.35, 0.7  # ln arcsec: 0.26"
LN_N_MEDIAN, LN_N_SD = 0.3, 0.7
# exp(-g^2 / 2 sd^2) (1 - g^2)^2: Bernstein & Armstrong 2014, MNRAS 438, 1880, section 4.1.
SHEAR_SD = 0.3
# Mean and scatter of bulge-to-total ratios: Allen et al. 2006, MNRAS 371, 2.
BULGE_MEAN, BULGE_SD = 0.25, 0.3
BULGE_N, BULGE_SIZE = 4.0, 0.5  # index of the bulge; its radius over that of the disk
# First guess of the half-light radius [arcsec] of a source that the compact, and of one that
# the extended template fits alone.
START_COMPACT, START_EXTENDED = 0.08, 0.40
CONVERGED = 0.5  # largest change of the loss over the last tenth of the steps


class MapSettings(NamedTuple):
    """Choices that change the program; hashable.

    Attributes:
        n_bands: Number of model bands.
        pixel_scale: Side of a model pixel [arcsec].
        profile: One of `PROFILES`.
        steps: Steps of Adam.
        learning_rate: Its first step; it decays to zero along a cosine.
        stamp: Light that leaves the image by half of this [model pixel] cannot come back.
        centroid_prior: Standard deviation of catalog positions [model pixel].
    """

    n_bands: int
    pixel_scale: float
    profile: str = "sersic"
    steps: int = 150
    learning_rate: float = 0.1
    stamp: int = 49
    centroid_prior: float = 0.3


class ProfileFit(NamedTuple):
    """Result of `fit_profiles`; rows of padding sources have no meaning.

    Attributes:
        flux: Per model band; the first guess where a band has no data; 0 for variable stars,
            `(source, band)`.
        plane_flux: Of variable stars, as in `Amplitudes`, `(source, plane)`.
        half_light_radius: Of the profile, of the disk for "bulge_disk", geometric mean of
            the axes [model pixel]; 0 for stars, `(source,)`.
        ellipticity: Reduced shear (g1, g2) before any PSF, `(source, 2)`.
        n: Sersic index, or the bulge fraction for "bulge_disk", `(source,)`.
        center: (y, x) [model pixel], `(source, 2)`.
        chi2, n_data: Over all unmasked pixels.
        loss: Minus log-likelihood minus log prior.
        converged: The loss changed by less than `CONVERGED` over the last tenth.
    """

    flux: Float[Array, "source band"]
    plane_flux: Float[Array, "source plane"]
    half_light_radius: Float[Array, " source"]
    ellipticity: Float[Array, "source 2"]
    n: Float[Array, " source"]
    center: Float[Array, "source 2"]
    chi2: Float[Array, ""]
    n_data: Float[Array, ""]
    loss: Float[Array, ""]
    converged: Bool[Array, ""]


class _Free(NamedTuple):
    """Unconstrained parameters of all sources, each of order one."""

    flux: Float[Array, "source band"]  # over its unit
    plane_flux: Float[Array, "source plane"]  # likewise, of variable stars
    ln_radius: Float[Array, " source"]  # ln arcsec
    shear: Float[Array, "source 2"]
    index: Float[Array, " source"]
    shift: Float[Array, "source 2"]  # from the catalog, over `centroid_prior`


class _Shapes(NamedTuple):
    radius: Float[Array, " source"]  # [model pixel]
    shear: Float[Array, "source 2"]
    index: Float[Array, " source"]


def _shapes(free: _Free, settings: MapSettings) -> _Shapes:
    """Bounded shape parameters."""
    square = jnp.sum(free.shear**2, axis=-1)
    size = jnp.sqrt(square + 1e-12)  # the root of 0 has no derivative
    shear = free.shear * (MAX_SHEAR * jnp.tanh(size) / size)[:, None]
    low, high = (0.0, 1.0) if settings.profile == "bulge_disk" else N_RANGE
    index = low + (high - low) * jax.nn.sigmoid(free.index)
    if settings.profile == "exponential":
        index = jnp.ones_like(index)
    # Bounds far outside the prior keep a lost step from overflowing.
    radius = jnp.exp(jnp.clip(free.ln_radius, -5.0, 3.0)) / settings.pixel_scale
    return _Shapes(radius, shear, index)


def _start(init, centers, settings) -> tuple[_Free, tuple[Array, Array]]:
    """First guess and the units of the fluxes, `(source, band)` and `(source, plane)`."""
    error = jnp.where(jnp.isfinite(init.plane_error), init.plane_error, 0.0)
    plane_unit = jnp.maximum(init.plane_flux, error)
    plane_flux = init.plane_flux / jnp.where(plane_unit > 0, plane_unit, 1.0)
    total = jnp.sum(init.flux, axis=1)
    seen = jnp.isfinite(init.flux_error)
    error = jnp.where(seen, init.flux_error, 1.0)
    unit = jnp.where(seen, jnp.maximum(total, error), 1.0)
    snr2 = jnp.where(seen, total / error**2, 0.0)
    extended = jnp.sum(init.flux[:, 0] * snr2, axis=-1)
    extended = extended / jnp.maximum(jnp.sum(total * snr2, axis=-1), 1e-30)
    ln_radius = jnp.log(START_COMPACT) + extended * jnp.log(
        START_EXTENDED / START_COMPACT
    )
    start = (
        0.2
        if settings.profile == "bulge_disk"
        else (1.0 - N_RANGE[0]) / (N_RANGE[1] - N_RANGE[0])
    )
    free = _Free(
        flux=total / unit,
        plane_flux=plane_flux,
        ln_radius=ln_radius,
        # Not exactly round, where the derivatives by the shear's direction are tiny.
        shear=jnp.full_like(init.centers, 0.02),
        index=jnp.full_like(ln_radius, jnp.log(start / (1 - start))),
        shift=(init.centers - centers) / settings.centroid_prior,
    )
    return free, (unit, plane_unit)


def _log_prior(
    free: _Free, shapes: _Shapes, is_star, present, settings: MapSettings
) -> Float[Array, ""]:
    """Log prior of the sources, up to a constant; flat in the fluxes."""
    ln_radius = (free.ln_radius - LN_RADIUS_MEDIAN) / LN_RADIUS_SD
    g2 = jnp.sum(shapes.shear**2, axis=-1)
    value = -0.5 * ln_radius**2 - 0.5 * g2 / SHEAR_SD**2 + 2 * jnp.log1p(-g2)
    if settings.profile == "sersic":
        value = value - 0.5 * ((jnp.log(shapes.index) - LN_N_MEDIAN) / LN_N_SD) ** 2
    elif settings.profile == "bulge_disk":
        value = value - 0.5 * ((shapes.index - BULGE_MEAN) / BULGE_SD) ** 2
    value = jnp.where(is_star, 0.0, value) - 0.5 * jnp.sum(free.shift**2, axis=-1)
    return jnp.sum(jnp.where(present, value, 0.0))


def _profile(kind: str, radius, shear, index):
    if kind == "sersic":
        return Sersic(index, radius, shear)
    disk = Exponential(radius, shear)
    if kind == "exponential":
        return disk
    bulge = Sersic(jnp.full_like(index, BULGE_N), BULGE_SIZE * radius, shear)
    return BulgeDisk(index, bulge, disk)


def _render(
    renderer: Renderer, flux, shapes: _Shapes, centers, is_star, kind: str
) -> Float[Array, "band height width"]:
    """Image of all sources: their sum in Fourier space, then one transform per band."""
    ky, kx = renderer.model_frequencies()
    shape = jax.vmap(lambda *p: _profile(kind, *p).fourier(ky, kx))(*shapes)
    shape = jnp.where(is_star[:, None, None], 1.0, shape)
    # `Renderer.phase` as a product of one factor per axis, which spares the exponentials.
    ly, lx = frequencies(renderer.n_image, ky.dtype)
    at = jax.vmap(renderer.fine_center)(centers)
    rows = jnp.exp(-1j * ly[None, :, 0] * at[:, :1])
    columns = jnp.exp(-1j * lx[None, 0, :] * at[:, 1:])
    total = 0.0
    flux = flux[:, jnp.asarray(renderer.band_index)]
    for k in range(len(flux)):
        term = shape[k] * (rows[k][:, None] * columns[k][None, :])
        total = total + flux[k][:, None, None] * term[None]
    return renderer.render_fourier(total * renderer.psf_fourier)


def fit_profiles(
    blend: Blend,
    init: Statistics | Amplitudes,
    psf_sigma: Float[Array, ""],
    settings: MapSettings,
) -> tuple[ProfileFit, Float[Array, " step"]]:
    """Fit closed-form profiles to all sources of a blend jointly.

    Free per galaxy: flux in every band, size, ellipticity, index and centre; per star: flux
    and centre. Jit and vmap it where it is called.

    Args:
        blend: One padded blend.
        init: Template fluxes and their errors, and centres.
        psf_sigma: Sigma of the model PSF [model pixel]; only the grid depends on it.
        settings: Static choices.

    Returns:
        The fit, and the loss before every step.

    Raises:
        ValueError: If `settings.profile` is unknown.

    References:
        Kingma & Ba 2015, arXiv:1412.6980 (Adam).
    """
    if settings.profile not in PROFILES:
        raise ValueError(
            f"`profile` must be one of {PROFILES}; got {settings.profile!r}."
        )
    renderers = [Renderer.of(o, settings.stamp, psf_sigma) for o in blend.observations]
    free, (unit, plane_unit) = _start(init, blend.centers, settings)
    free = jax.tree.map(jax.lax.stop_gradient, free)
    present, constant = blend.present, blend.present & ~blend.is_variable

    def physical(free):
        flux = jnp.where(constant[:, None], free.flux * unit, 0.0)
        # Its unit is 0 where a star does not shine.
        plane_flux = free.plane_flux * plane_unit
        centers = blend.centers + free.shift * settings.centroid_prior
        return flux, plane_flux, _shapes(free, settings), centers

    def images(free):
        flux, plane_flux, shapes, centers = physical(free)
        return [
            _render(
                r,
                flux_seen(flux, plane_flux, planes, r.band_index),
                shapes,
                centers,
                blend.is_star,
                settings.profile,
            )
            for r, planes in zip(renderers, blend.planes, strict=True)
        ]

    def objective(free):
        shapes = _shapes(free, settings)
        value = -_log_prior(free, shapes, blend.is_star, present, settings)
        for observation, image in zip(blend.observations, images(free), strict=True):
            value = value - log_likelihood(image, observation)
        return value

    optimizer = optax.adam(
        optax.cosine_decay_schedule(settings.learning_rate, settings.steps), b2=0.95
    )

    def step(carry, _):
        free, state = carry
        loss, slope = jax.value_and_grad(objective)(free)
        update, state = optimizer.update(slope, state)
        return (optax.apply_updates(free, update), state), loss

    (free, _), losses = jax.lax.scan(
        step, (free, optimizer.init(free)), length=settings.steps
    )
    loss = objective(free)
    flux, plane_flux, shapes, centers = physical(free)
    chi2, n_data = 0.0, 0.0
    for observation, image in zip(blend.observations, images(free), strict=True):
        c, n = chi2_per_band(image, observation)
        chi2, n_data = chi2 + jnp.sum(c), n_data + jnp.sum(n)
    tenth = max(settings.steps // 10, 1)
    fit = ProfileFit(
        flux=flux,
        plane_flux=plane_flux,
        half_light_radius=jnp.where(blend.is_star, 0.0, shapes.radius),
        ellipticity=jnp.where(blend.is_star[:, None], 0.0, shapes.shear),
        n=shapes.index,
        center=centers,
        chi2=chi2,
        n_data=n_data,
        loss=loss,
        converged=jnp.abs(losses[-tenth] - loss) < CONVERGED,
    )
    return fit, losses


class PixelFit(NamedTuple):
    """Result of `fit_pixels`.

    Attributes:
        images: Model images, zero for padding, `(source, band, stamp, stamp)`.
        star_flux: Flux of the stars, zero for others, `(source, band)`.
        rendered: Sum of all sources and the sky on the pixels of each observation.
        residuals: Norm of the whitened residual of the linear system over that of its
            right-hand side, before every iteration, `(iteration,)`.
    """

    images: Float[Array, "source band stamp stamp"]
    star_flux: Float[Array, "source band"]
    rendered: tuple[Float[Array, "band height width"], ...]
    residuals: Float[Array, " iteration"]


class PixelSettings(NamedTuple):
    """Choices of `fit_pixels` that change the program; hashable.

    Attributes:
        iterations: Conjugate-gradient iterations.
        sky_sigma: As in `statistics.Settings`.
    """

    iterations: int = 200
    sky_sigma: float = 0.0


class _Unknowns(NamedTuple):
    """What a blend is made of: stamps, star fluxes, sky of every observation and band."""

    stamps: Float[Array, "source band stamp stamp"]
    star_flux: Float[Array, "source band"]
    sky: tuple[Float[Array, " band"], ...]


def _project(renderer, stamps, star_flux, centers) -> Float[Array, "band height width"]:
    """Sum of all sources on an observation, without the sky; linear."""
    index = jnp.asarray(renderer.band_index)
    ky, kx = renderer.stamp_frequencies()
    point = gaussian_transform(ky, kx, renderer.psf_sigma)
    transform = jax.vmap(renderer.stamp_transform)(stamps[:, index])
    transform = transform + star_flux[:, index, None, None] * point[None, None]
    return jnp.sum(jax.vmap(renderer.render_transform)(transform, centers), axis=0)


def conjugate_gradients(apply, rhs, iterations: int):
    """Solve `apply(x) = rhs` for a symmetric positive operator on a pytree.

    Returns:
        x, and the norm of the residual over that of `rhs` before every iteration.

    References:
        Hestenes & Stiefel 1952, J. Res. NBS 49, 409.
    """

    def dot(a, b):
        products = jax.tree.map(lambda u, v: jnp.sum(u * v), a, b)
        return jax.tree.reduce(jnp.add, products)

    def add(a, b, factor):
        return jax.tree.map(lambda u, v: u + factor * v, a, b)

    first = dot(rhs, rhs)
    tiny = jnp.finfo(first.dtype).tiny

    def step(carry, _):
        x, r, p, rr = carry
        image = apply(p)
        # After exact convergence p = 0, and 0 / tiny leaves x alone.
        alpha = rr / jnp.maximum(dot(p, image), tiny)
        x, r = add(x, p, alpha), add(r, image, -alpha)
        new = dot(r, r)
        beta = new / jnp.maximum(rr, tiny)
        return (x, r, add(r, p, beta), new), jnp.sqrt(rr / jnp.maximum(first, tiny))

    zero = jax.tree.map(jnp.zeros_like, rhs)
    (x, *_), history = jax.lax.scan(step, (zero, rhs, rhs, first), length=iterations)
    return x, history


def fit_pixels(
    blend: Blend,
    init: Statistics | Amplitudes,
    prior: GaussianPrior,
    tau: Float[Array, ""],
    settings: PixelSettings,
) -> PixelFit:
    """Posterior mean of free multi-band pixels, the MAP of a linear Gaussian model.

    A galaxy is `x = s u`; the covariance of u is that of `prior` plus, outside its basis,
    `tau^2 D`, where the diagonal D shares `basis.residual` out among the pixels in
    proportion to the squared mean galaxy. Stars are point sources with a flux of standard
    deviation `STAR_SPREAD` s per band. In data space, with the prior covariance P,
    `(S + A P A^T) v = y - A m` and `x = m + P A^T v` (Rasmussen & Williams 2006, eq. 2.25);
    the system is whitened by the noise and never formed. Blends with variable stars are not
    supported. Its condition number is about
    the squared S/N of the brightest source: in single precision a S/N beyond some hundreds
    does not converge, `residuals` tells; the latent posterior has no such limit.

    Args:
        blend: One padded blend.
        init: Amplitudes and centres; the centres are held.
        prior: The prior.
        tau: Weight of the remainder, >= 0.
        settings: Static choices.

    Raises:
        ValueError: If the blend has a variable star.
    """
    if blend.shines is not None:
        raise ValueError(
            "free pixels have no fluxes per epoch: fit profiles, or sample the posterior."
        )
    basis = prior.basis
    stamp = basis.mean.shape[-1]
    n_bands = len(basis.bands)
    renderers = [
        Renderer.of(o, stamp, basis.psf_sigma).moved(offset)
        for o, offset in zip(blend.observations, init.offsets, strict=True)
    ]
    dtype = renderers[0].psf_sigma.dtype
    flat = jnp.asarray(basis.modes, dtype).reshape(len(basis.modes), -1)
    root = jnp.asarray(prior.cholesky, dtype).T @ flat
    mean = jnp.asarray(basis.mean, dtype)
    diagonal = (tau**2 * basis.residual / jnp.sum(mean**2)).astype(dtype) * mean**2
    mean = mean + (jnp.asarray(prior.mean, dtype) @ flat).reshape(mean.shape)
    scale = jnp.where(blend.present, init.scale, 0.0).astype(dtype)
    galaxy = jnp.where(blend.is_star, 0.0, scale)
    star = jnp.where(blend.is_star, scale, 0.0)

    sky_sd, whiten = [], []
    for observation in blend.observations:
        weight = observation.weight
        count = jnp.sum(weight > 0, axis=(-2, -1))
        sd = jnp.sqrt(count / jnp.maximum(jnp.sum(weight, axis=(-2, -1)), 1e-30))
        sky_sd.append(settings.sky_sigma * jnp.where(count > 0, sd, 0.0))
        whiten.append(observation.whitening)

    def forward(x: _Unknowns):
        return tuple(
            _project(r, x.stamps, x.star_flux, init.centers) + sky[:, None, None]
            for r, sky in zip(renderers, x.sky, strict=True)
        )

    def covariance(x: _Unknowns) -> _Unknowns:
        stamps = x.stamps * galaxy[:, None, None, None]
        coordinates = stamps.reshape(len(galaxy), -1) @ root.T
        inside = (coordinates @ root).reshape(stamps.shape)
        stamps = (inside + diagonal[None] * stamps) * galaxy[:, None, None, None]
        flux = x.star_flux * ((STAR_SPREAD * star) ** 2)[:, None]
        sky = tuple(s * sd**2 for s, sd in zip(x.sky, sky_sd, strict=True))
        return _Unknowns(stamps, flux, sky)

    expected = _Unknowns(
        stamps=galaxy[:, None, None, None] * mean[None],
        star_flux=jnp.broadcast_to(star[:, None], (len(star), n_bands)),
        sky=tuple(jnp.zeros_like(sd) for sd in sky_sd),
    )
    backward = jax.linear_transpose(forward, expected)

    def apply(w):
        v = tuple(white.transpose(a) for a, white in zip(w, whiten, strict=True))
        image = forward(covariance(backward(v)[0]))
        return tuple(a + white(i) for a, white, i in zip(w, whiten, image, strict=True))

    model = forward(expected)
    rhs = tuple(
        white(o.image - m)
        for white, o, m in zip(whiten, blend.observations, model, strict=True)
    )
    w, residuals = conjugate_gradients(apply, rhs, settings.iterations)
    v = tuple(white.transpose(a) for a, white in zip(w, whiten, strict=True))
    x = jax.tree.map(jnp.add, expected, covariance(backward(v)[0]))
    r = jnp.arange(stamp, dtype=dtype) - stamp // 2
    sigma = jnp.asarray(basis.psf_sigma, dtype)
    line = jnp.exp(-0.5 * (r / sigma) ** 2) / (sigma * jnp.sqrt(2 * jnp.pi))
    point = line[:, None] * line[None, :]
    images = x.stamps + x.star_flux[:, :, None, None] * point[None, None]
    return PixelFit(images, x.star_flux, forward(x), residuals)
