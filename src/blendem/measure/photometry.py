"""Fluxes, magnitudes and the summary of posterior draws."""

import numpy as np
from jaxtyping import Array, Bool, Float

# 16 % and 84 %: a central interval that holds 0.68 of any distribution.
CENTRAL_68 = (0.16, 0.84)
# Type 6 of Hyndman & Fan 1996, Am. Stat. 50, 361: the p-quantile of n draws sits at rank
# p (n + 1), so that the interval between two of them holds the stated probability for any n.
# NumPy's default (type 7) covers (n - 1)/(n + 1) of it: 0.659 instead of 0.68 for 64 draws.
QUANTILE_METHOD = "weibull"


def fluxes(
    images: Float[Array | np.ndarray, "*n height width"],
) -> Float[np.ndarray, "*n"]:
    """Total flux of each stamp [image unit]: its sum, in float64."""
    return np.asarray(np.asarray(images).sum(axis=(-2, -1), dtype=float))


def magnitudes(
    flux: Float[np.ndarray, "*n"], magzero: float | Float[np.ndarray, "*m"]
) -> Float[np.ndarray, "*n"]:
    """AB magnitudes, `magzero - 2.5 log10(flux)`; NaN where the flux is not positive."""
    flux = np.asarray(flux)
    return magzero - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def magnitude_errors(
    flux: Float[np.ndarray, "*n"], flux_err: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """Errors [mag] to first order in `flux_err / flux`; NaN where the flux is not positive.

    Above a relative error of 0.2 the magnitude is skewed and the flux quantiles are better.
    """
    return 2.5 / np.log(10) * np.asarray(flux_err) / np.where(flux > 0, flux, np.nan)


def signal_to_noise(
    flux: Float[np.ndarray, "*n"], flux_err: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """Flux over its error; NaN where the error is not positive."""
    return np.asarray(flux) / np.where(np.asarray(flux_err) > 0, flux_err, np.nan)


def quantiles(
    samples: Float[np.ndarray, "n *shape"], levels: Float[np.ndarray, " level"]
) -> Float[np.ndarray, "level *shape"]:
    """Quantiles of draws along the first axis, unbiased in coverage (`QUANTILE_METHOD`).

    Draws that are NaN (a shape that could not be measured) are left out; NaN where none is left.
    Levels beyond 1/(n + 1) from an end give the outermost draw.
    """
    samples = np.asarray(samples, dtype=float)
    flat = samples.reshape(len(samples), -1)
    out = np.full((len(levels), flat.shape[1]), np.nan)
    whole = ~np.isnan(flat).any(axis=0)
    out[:, whole] = np.quantile(flat[:, whole], levels, axis=0, method=QUANTILE_METHOD)
    for column in np.flatnonzero(~whole):
        kept = flat[~np.isnan(flat[:, column]), column]
        if kept.size:
            out[:, column] = np.quantile(kept, levels, method=QUANTILE_METHOD)
    return out.reshape(len(levels), *samples.shape[1:])


def summarise_samples(
    values: Float[np.ndarray, "n *shape"],
) -> dict[str, Float[np.ndarray, "*shape"]]:
    """Mean, standard deviation and 68 % interval of draws along the first axis.

    Draws that are NaN are left out, so a summary is NaN only where no draw is left (`std`:
    fewer than two).

    Returns:
        `mean`, `std` (n - 1 in the denominator), `q16`, `q84` (see `QUANTILE_METHOD`), in the unit
        of `values`.
    """
    values = np.asarray(values, dtype=float)
    kept = ~np.isnan(values)
    n = kept.sum(axis=0)
    mean = np.where(kept, values, 0.0).sum(axis=0) / np.where(n > 0, n, np.nan)
    square = np.where(kept, (values - mean) ** 2, 0.0).sum(axis=0)
    std = np.sqrt(square / np.where(n > 1, n - 1, np.nan))
    q16, q84 = quantiles(values, np.array(CENTRAL_68))
    return {"mean": mean, "std": std, "q16": q16, "q84": q84}


def circle_overlap(
    shape: tuple[int, int], center: tuple[float, float], radius: float
) -> Float[np.ndarray, "height width"]:
    """Fraction of each pixel that lies within `radius` [pixel] of `center` (y, x), exactly.

    The area of a circle in a rectangle with a corner at its centre has a closed form, odd in
    both sides; four of them, with signs, make a pixel.
    """
    edges = [
        np.arange(side + 1) - 0.5 - c for side, c in zip(shape, center, strict=True)
    ]
    b, a = (np.minimum(np.abs(e), radius) for e in edges)
    a, b = a[None, :], b[:, None]
    inside = a**2 + b**2 <= radius**2

    def segment(x):  # integral of sqrt(radius^2 - x^2) from 0 to x
        angle = np.arcsin(np.clip(x / radius, 0, 1))
        return (x * np.sqrt(np.maximum(radius**2 - x**2, 0)) + radius**2 * angle) / 2

    corner = np.sqrt(
        np.maximum(radius**2 - b**2, 0)
    )  # where the circle meets the top side
    area = np.where(
        inside, a * b, b * corner + segment(a) - segment(np.minimum(corner, a))
    )
    area = area * np.sign(edges[0])[:, None] * np.sign(edges[1])[None, :]
    return area[1:, 1:] - area[:-1, 1:] - area[1:, :-1] + area[:-1, :-1]


def aperture_flux(
    images: Float[Array | np.ndarray, "*n height width"],
    radius: float,
    center: tuple[float, float] | None = None,
    *,
    mask: Bool[np.ndarray, "height width"] | None = None,
) -> Float[np.ndarray, "*n"]:
    """Flux within a circle [image unit], pixels weighted by their overlap with it.

    Args:
        images: Images, the aperture is the same for all.
        radius: Radius [pixel].
        center: (y, x) [pixel]; the middle of the image if None.
        mask: True where a pixel is left out; its flux is not replaced.

    Raises:
        ValueError: If the radius is not positive.
    """
    if not radius > 0:
        raise ValueError(f"`radius` must be positive [pixel], got {radius}.")
    images = np.asarray(images, dtype=float)
    height, width = images.shape[-2:]
    center = ((height - 1) / 2, (width - 1) / 2) if center is None else center
    weight = circle_overlap((height, width), center, radius)
    if mask is not None:
        weight = np.where(mask, 0.0, weight)
        images = np.where(mask, 0.0, images)
    return np.asarray(np.einsum("...yx,yx->...", images, weight))
