"""sep, photutils and no deblending on the fields of a run: what users have without a model.

    .venv-peers/bin/python benchmarks/peer_pixels.py results/<run>

Every field is detected as a whole, in the mean of its bands weighted by 1/variance, with the settings
that both documentations start from (`--threshold` 1.5 sigma). What each method is given:

- `sep`, `photutils`: pixels only. Detections (32 levels; contrast 0.005 and 0.001, the defaults;
  photutils on the image smoothed by its Gaussian kernel of 3 pixels) are matched to the catalog one
  to one within `--match`. Flux: sum of the pixels of the segment (`sep`, `photutils`), or in the Kron ellipse
  of 2.5 radii with the neighbours' segments masked (`sep_auto`) or replaced by their mirror images
  (`photutils_auto`), as their documentations do. Sources that nothing was matched to have no result.
- `sep_aperture`: catalog positions too. Flux in a circle of `--aperture`, other segments masked,
  over the part of a point source's light that such a circle holds. A source that was not detected has the
  segment that it lies in.
- `none`: the same circle, nothing masked. It is what an aperture of photutils gives as well.

The image of a source alone is that of its segment; of an aperture, all that is not masked. Masked pixels
count as 0. Writes `results/<run>/peers/<method>.h5` (method_results.py).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import sep
from astropy.convolution import convolve
from astropy.io import fits
from method_results import (
    WINDOW_MARGIN,
    MethodResult,
    cut,
    peak_gib,
    read_cutouts,
    window_corner,
    write_method,
)
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from blendem.measure.photometry import aperture_flux, circle_overlap

METHODS = ("none", "sep_aperture", "sep", "sep_auto", "photutils", "photutils_auto")
MIN_AREA, LEVELS = 5, 32
SEP_CONTRAST, PHOTUTILS_CONTRAST = 0.005, 0.001
KERNEL_FWHM, KERNEL_SIDE = 3.0, 5  # pixel; photutils, "Image Segmentation"
KRON, MIN_RADIUS = 2.5, 1.75  # SExtractor's PHOT_AUTOPARAMS 2.5, 3.5 (a diameter)


def detection(image: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the bands weighted by 1/variance and its sigma; 0 and infinity where masked."""
    weight = np.where(np.isfinite(variance), 1 / variance, 0.0)
    total = weight.sum(axis=0)
    used = np.where(total > 0, total, 1.0)
    mean = np.sum(weight * np.where(weight > 0, image, 0.0), axis=0) / used
    return mean, np.where(total > 0, 1 / np.sqrt(used), np.inf)


def match(catalog: np.ndarray, found: np.ndarray, radius: float) -> np.ndarray:
    """Row of `found` of each catalog position, one to one; -1 where none is within `radius`.

    The number of matches is as large as it can be, then the sum of their distances small.
    """
    out = np.full(len(catalog), -1)
    if len(catalog) and len(found):
        distance = cdist(catalog, found)
        # A pair that is too far apart costs more than all allowed ones together.
        far = radius * (min(distance.shape) + 1)
        rows, columns = linear_sum_assignment(
            np.where(distance <= radius, distance, far)
        )
        near = distance[rows, columns] <= radius
        out[rows[near]] = columns[near]
    return out


def run_sep(image, variance, threshold: float):
    """Detect and measure.

    Returns:
        Positions (y, x), segmentation (label k + 1 of detection k), fluxes in segments and in Kron
        ellipses, each `(n, band)`.
    """
    mean, sigma = detection(image, variance)
    masked = ~np.isfinite(sigma)
    found, segments = sep.extract(
        np.ascontiguousarray(mean, float),
        threshold,
        err=np.where(masked, 1.0, sigma),
        mask=masked,
        minarea=MIN_AREA,
        deblend_nthresh=LEVELS,
        deblend_cont=SEP_CONTRAST,
        segmentation_map=True,
    )
    n, ids = len(found), np.arange(1, len(found) + 1, dtype=np.int32)
    usable = np.isfinite(found["a"] + found["b"] + found["theta"]) & (found["b"] > 0)
    kron = np.full((n, len(image)), np.nan)
    if usable.any():
        f, own = found[usable], ids[usable]
        theta = np.clip(f["theta"], -np.pi / 2, np.pi / 2)
        where = dict(mask=masked, segmap=segments, seg_id=own)
        shape = f["x"], f["y"], f["a"], f["b"], theta
        radius, _ = sep.kron_radius(
            np.ascontiguousarray(mean, float), *shape, 6.0, **where
        )
        # Where an ellipse is too small SExtractor takes a circle.
        small = ~(radius * np.sqrt(f["a"] * f["b"]) > MIN_RADIUS)
        for b, plane in enumerate(image):
            plane = np.ascontiguousarray(plane, float)
            ellipse, _, _ = sep.sum_ellipse(
                plane, *shape, KRON * np.where(small, 1.0, radius), **where
            )
            circle, _, _ = sep.sum_circle(
                plane, f["x"], f["y"], np.full(len(f), MIN_RADIUS), **where
            )
            kron[usable, b] = np.where(small, circle, ellipse)
    return (
        np.stack([found["y"], found["x"]], -1),
        segments,
        sums(image, segments, n),
        kron,
    )


def run_photutils(image, variance, threshold: float):
    """Detect, deblend and measure; returns as `run_sep`."""
    # Only the environment of the peers has it.
    from photutils.segmentation import (
        SourceCatalog,
        deblend_sources,
        detect_sources,
        make_2dgaussian_kernel,
    )

    mean, sigma = detection(image, variance)
    masked = ~np.isfinite(sigma)
    kernel = make_2dgaussian_kernel(KERNEL_FWHM, size=KERNEL_SIDE)
    smooth = convolve(mean, kernel)
    limit = threshold * np.where(masked, 1.0, sigma)
    segments = detect_sources(smooth, limit, n_pixels=MIN_AREA, mask=masked)
    if segments is None:
        none = np.zeros((0, len(image)))
        return np.zeros((0, 2)), np.zeros(mean.shape, int), none, none
    segments = deblend_sources(
        smooth,
        segments,
        n_pixels=MIN_AREA,
        n_levels=LEVELS,
        contrast=PHOTUTILS_CONTRAST,
        progress_bar=False,
    )
    segments.relabel_consecutive()
    known = SourceCatalog(mean, segments, convolved_data=smooth, mask=masked)
    kron = []
    for plane in image:
        seen = SourceCatalog(plane, segments, detection_catalog=known, mask=masked)
        kron.append(np.atleast_1d(seen.kron_flux))
    position = np.stack([known.y_centroid, known.x_centroid], -1).reshape(-1, 2)
    n = len(position)
    data = np.asarray(segments.data)
    return position, data, sums(image, data, n), np.stack(kron, -1)


def sums(image: np.ndarray, segments: np.ndarray, n: int) -> np.ndarray:
    """Flux of every segment, `(n, band)`."""
    labels = segments.ravel()
    return np.stack(
        [
            np.bincount(labels, weights=plane.ravel(), minlength=n + 1)[1:]
            for plane in image.astype(float)
        ],
        axis=-1,
    )


def windows(image, segments, labels, low, side, *, alone: bool) -> np.ndarray:
    """Image of every source in its window: its segment, or (not `alone`) all but other segments."""
    out = np.zeros((len(low), len(image), side, side), np.float32)
    for k, (label, begin) in enumerate(zip(labels, low, strict=True)):
        seen = cut(segments.astype(np.float32), (0, 0), begin, side)
        kept = seen == label
        if not alone:
            kept = kept | (seen == 0)
        out[k] = np.where(kept, cut(image, (0, 0), begin, side), 0.0)
    return out


def point_light(psf: np.ndarray, radius: float) -> np.ndarray:
    """Part of the light of a point source within a circle [pixel] around it, per band."""
    return aperture_flux(psf, radius) / psf.sum(axis=(1, 2))


def forced(images: np.ndarray, center: np.ndarray, radius: float, psf) -> np.ndarray:
    """Fluxes in circles around `center` of every window, corrected for the PSF, `(n, band)`."""
    side = images.shape[-1]
    weight = [circle_overlap((side, side), tuple(c), radius) for c in center]
    flux = np.einsum("nbyx,nyx->nb", images.astype(float), np.array(weight))
    return flux / point_light(psf, radius)


FINDERS = {"sep": run_sep, "photutils": run_photutils}


def field_results(
    field, position, options, pixel_scale: float, side: int, finders=FINDERS
) -> dict:
    """Fluxes, images and seconds of every method on one field, at catalog `position` (y, x).

    Args:
        field: Image, variance and PSF.
        position: Of the sources.
        options: `threshold`, `match`, `aperture` (see the command line).
        pixel_scale: Side of a pixel [arcsec].
        side: Of the windows [pixel].
        finders: What detects and measures, by name.
    """
    image, variance, psf = field
    image = np.where(np.isfinite(variance), image, 0.0)
    low, out = window_corner(position, side), {}
    radius, near = options.aperture / pixel_scale, options.match / pixel_scale
    begin = time.perf_counter()
    nothing = np.zeros(image.shape[1:], int)
    seen = windows(image, nothing, np.zeros(len(low), int), low, side, alone=False)
    flux = forced(seen, position - low, radius, psf)
    out["none"] = flux, seen, time.perf_counter() - begin
    for name, run in finders.items():
        begin = time.perf_counter()
        found, segments, isophotal, kron = run(image, variance, options.threshold)
        seconds = time.perf_counter() - begin
        place = match(position, found, near)
        # A last row of NaN is what unmatched sources (-1) get.
        missing = np.full((1, len(image)), np.nan)
        labels = np.where(place < 0, -1, place + 1)
        alone = windows(image, segments, labels, low, side, alone=True)
        alone[place < 0] = np.nan
        for kind, values in ((name, isophotal), (f"{name}_auto", kron)):
            out[kind] = np.concatenate([values, missing])[place], alone, seconds
        if name == "sep":
            begin = time.perf_counter()
            # What is not detected on its own belongs to the segment that it lies in.
            y, x = np.clip(
                np.round(position).astype(int).T, 0, [[n - 1] for n in segments.shape]
            )
            own = np.where(place < 0, segments[y, x], place + 1)
            free = windows(image, segments, own, low, side, alone=False)
            flux = forced(free, position - low, radius, psf)
            out["sep_aperture"] = flux, free, seconds + time.perf_counter() - begin
    return out


def main(options: argparse.Namespace) -> None:
    """Measure field after field, then write one file per method."""
    run, cutouts = options.run, read_cutouts(options.run)
    side, bands = options.stamp + WINDOW_MARGIN, cutouts.bands
    parts = {name: [] for name in METHODS}
    tables, corners = [], []
    for name, members in cutouts.sources.groupby("field", sort=True):
        with fits.open(run / "fields" / f"{name}.fits") as file:
            field = [np.array(file[hdu].data, float) for hdu in ("SCI", "VAR", "PSF")]
            field[1] = np.where(file["MASK"].data > 0, np.inf, field[1])
        scale = next(d.fields[name] for _, d in cutouts.chunks if name in d.fields)
        position = members[["y", "x"]].to_numpy(float)
        results = field_results(
            field, position, options, float(scale["pixel_scale"]), side
        )
        for method, result in results.items():
            parts[method].append(result)
        tables.append(members[["field", "id"]])
        corners.append(window_corner(position, side))
    import photutils

    keys, corner = pd.concat(tables, ignore_index=True), np.concatenate(corners)
    blends = cutouts.blends[["field", "number"]]
    memory = peak_gib()
    for method in METHODS:
        flux, observed, seconds = zip(*parts[method], strict=True)
        table = keys.copy()
        for b, values in zip(bands, np.concatenate(flux).T, strict=True):
            table[f"flux_{b}"] = values
        write_method(
            run / "peers" / f"{method}.h5",
            MethodResult(
                table,
                np.concatenate(observed),
                corner,
                {"fit": sum(seconds) / len(blends)},
                memory,
            ),
            blends,
            {
                "method": method,
                "command": " ".join(sys.argv),
                "versions": f"sep {sep.__version__}, photutils {photutils.__version__}",
                "settings": {k: v for k, v in vars(options).items() if k != "run"},
            },
        )
        lost = table[f"flux_{bands[0]}"].isna().sum()
        print(f"{method}: {lost} of {len(table)} sources without a result")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder results/<run>")
    parser.add_argument("--threshold", type=float, default=1.5, help="[sigma]")
    parser.add_argument("--match", type=float, default=0.8, help="[arcsec]")
    parser.add_argument("--aperture", type=float, default=1.5, help="radius [arcsec]")
    parser.add_argument("--stamp", type=int, default=49, help="as `frame.stamp`")
    main(parser.parse_args())
