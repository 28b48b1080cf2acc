"""The real pair of HST and HSC images as a field: two FITS files, and the tables that list them.

    python benchmarks/hst_hsc_fields.py $BLENDEM_DATA/hst_hsc_pair results/hst_hsc_fields

The pair (pmelchior/scarlet, `data/test_resampling`) shows one patch of COSMOS: ACS F814W, 250 x 250 pixels of
0.03 arcsec, and HSC grizy, 50 x 50 pixels of 0.168. Its counts are divided by their own sum, band by
band, and have neither a variance nor a zero point. What is made of that:

- Sky and noise of a band are mean and standard deviation of the pixels without sources, the correlation of noise
  is theirs (the mean of the HSC bands). The photon noise of the sources is not in it.
- F814W is put on the AB system by its noise: that of the same mosaic at the same depth.
- HSC has the zero points with which its colours to F814W are most like those of simulated galaxies, band by band
  (as a stellar locus regression, but with galaxies: High et al. 2009, AJ 138, 110). Colours of this field
  are therefore no test of the prior. Fluxes are those of HST segments, brought to the PSF of HSC (TFIT,
  Laidler et al. 2007, PASP 119, 1325).
- Sources are those that HST shows; its noise is correlated, so that significances are measured against the spread
  of the free pixels. HSC pixels outside HST's image, or lit by what HST does not show, are masked.

`joint.tsv` lists HST, whose sources are then the catalog, and HSC; `alone.tsv` HSC, with what is detected in it
alone; `known.tsv` HSC with the sources of HST.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import galsim
import numpy as np
import sep
from astropy.io import fits
from astropy.stats import sigma_clipped_stats
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_dilation, label
from scipy.optimize import minimize
from scipy.special import logsumexp

from blendem.io.checks import centroid
from blendem.io.fields import write_field
from blendem.noise import estimate_correlation
from blendem.rng import stage_rng
from blendem.survey.detect import detect, detection_image
from blendem.survey.instruments import MAGZERO
from blendem.survey.population import draw_galaxies, total_flux

HST, HSC = ("f814w",), ("g", "r", "i", "z", "y")
# Standard deviation of a pixel of the COSMOS mosaic at 0.03" [counts per second], median of 70 cut-outs
# (NOISE_VARIANCE of hst_cosmos_stamps.fits), and its zero point (Koekemoer et al. 2007, ApJS 172, 196).
ACS_SIGMA, ACS_MAGZERO = 2.59e-3, 25.94
# Significance of pixels that are not free of sources [sigma]: HST has so many that 3 would take its noise too.
LIT = {"HST": 4.0, "HSC": 3.0}
GROWTH = {"HST": 5, "HSC": 2}  # and how far they are widened [pixel]
# Of the correlation of noise [pixel]; beyond, HST has less than 0.03, and every lag costs memory.
REACH = 2
THRESHOLD = 6.0  # of detection [sigma]
SHARE = 2e-4  # of a footprint that is a source
WHOLE = 5e-3  # that is a galaxy for photometry
APART = 1.0  # an HSC detection is an HST source if it is nearer than this [arcsec]
SEGMENT = 2.5  # significance of the pixels of a segment [sigma]
GALAXIES, SCATTER, BRIGHTEST = 20000, 0.1, 4  # simulated; [mag]; that tell zero points


class Sky(NamedTuple):
    """What the pixels without sources say.

    Attributes:
        level, sigma: Mean and standard deviation per band [counts].
        spread: Standard deviation of the detection image; 1 if noise were white.
        significance: The detection image over `spread`.
        free: Pixels without sources.
    """

    level: Float[np.ndarray, " _"]
    sigma: Float[np.ndarray, " _"]
    spread: float
    significance: Float[np.ndarray, "_ _"]
    free: Bool[np.ndarray, "_ _"]


def read_pair(folder: Path) -> dict:
    """Images, PSFs and WCS of the pair, as they come; PSFs have sum 1.

    Raises:
        SystemExit: If a file is missing.
    """
    out = {}
    for name in ("HST", "HSC"):
        paths = [folder / f"{kind}_{name}.fits" for kind in ("Cut", "PSF")]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise SystemExit(
                f"{', '.join(missing)}: no such file; BLENDEM_DATA must name the folder that"
                " holds hst_hsc_pair/"
            )
        planes = []
        for path in paths:
            with fits.open(path) as hdus:
                data = np.asarray(hdus[0].data, float)
                planes.append(data[None] if data.ndim == 2 else data)
        image, psf = planes
        wcs = WCS(fits.getheader(paths[0])).celestial
        psf = psf / psf.sum((1, 2), keepdims=True)
        out[name] = {"image": image, "psf": psf, "wcs": wcs}
    return out


def measure_sky(
    image: Float[np.ndarray, "band height width"],
    psf: Float[np.ndarray, "band size size"],
    lit: float,
    growth: int,
    iterations: int = 10,
) -> Sky:
    """Sky, noise and significance, each from the pixels that the others leave free.

    Free is what is further than `growth` pixels from all that is above `lit` sigma.
    """
    first = [sigma_clipped_stats(plane, sigma=2.5, maxiters=20) for plane in image]
    level, _, sigma = np.array(first).T
    spread = 1.0
    for _ in range(iterations):
        flat = image - level[:, None, None]
        variance = np.broadcast_to(sigma[:, None, None] ** 2, image.shape)
        significance = detection_image(flat, variance, psf)
        free = ~binary_dilation(significance > lit * spread, iterations=growth)
        level, sigma = image[:, free].mean(axis=1), image[:, free].std(axis=1)
        spread = float(significance[free].std())
    return Sky(level, sigma, spread, significance / spread, free)


def correlation_of(
    image: Float[np.ndarray, "band height width"], sky: Sky, reach: int
) -> Float[np.ndarray, "band lag lag"]:
    """Correlation of the noise of neighbours, the mean of all bands: one resampling made them."""
    pulls = (image - sky.level[:, None, None]) / sky.sigma[:, None, None]
    found = [estimate_correlation(plane, sky.free, reach)[0] for plane in pulls]
    return np.broadcast_to(np.mean(found, axis=0), (len(image), *found[0].shape))


def find(
    image: Float[np.ndarray, "band height width"],
    psf: Float[np.ndarray, "band size size"],
    sky: Sky,
    share: float = SHARE,
) -> Table:
    """Sources above `THRESHOLD`, with the noise as it is after the filter."""
    sigma = (sky.spread * sky.sigma)[:, None, None]
    significance = detection_image(
        image - sky.level[:, None, None],
        np.broadcast_to(sigma**2, image.shape),
        psf,
    )
    return detect(significance, threshold=THRESHOLD, deblend_cont=share)


def nearest_parts(
    region: Bool[np.ndarray, "height width"], positions: Float[np.ndarray, "n 2"]
) -> Int[np.ndarray, "height width"]:
    """The source (y, x) nearest to each pixel of a region, from 1; 0 outside."""
    y, x = np.indices(region.shape)
    away = [np.hypot(y - one[0], x - one[1]) for one in positions]
    return np.where(region, np.argmin(away, axis=0) + 1, 0)


def segments(sky: Sky, positions: Float[np.ndarray, "n 2"]) -> np.ndarray:
    """Pixels of every source: those near what is significant, of the nearest one."""
    lit = binary_dilation(sky.significance > SEGMENT, iterations=2)
    regions, _ = label(lit)
    at = tuple(np.round(positions).astype(int).T)
    held = np.isin(regions, np.unique(regions[at])) & lit
    return nearest_parts(held, positions)


def unmodelled(
    sky: Sky, known: Float[np.ndarray, "n 2"], limit: float
) -> Bool[np.ndarray, "height width"]:
    """Pixels of what is lit further than `limit` [pixel] from all known sources (y, x)."""
    found, parts = sep.extract(
        np.ascontiguousarray(sky.significance),
        LIT["HSC"],
        filter_kernel=None,
        deblend_cont=WHOLE,
        clean=False,
        segmentation_map=True,
    )
    away = [np.hypot(known[:, 0] - s["y"], known[:, 1] - s["x"]).min() for s in found]
    far = (np.array(away) > limit) & (found["peak"] > THRESHOLD)
    mine = np.isin(parts, np.flatnonzero(far) + 1)
    return binary_dilation(mine, iterations=GROWTH["HSC"])


def shown(one: dict, other: dict) -> Bool[np.ndarray, "height width"]:
    """Pixels of an image whose middle another image shows."""
    y, x = np.indices(one["image"].shape[1:]).reshape(2, -1)
    at = other["wcs"].all_world2pix(one["wcs"].all_pix2world(np.c_[x, y], 0), 0)
    height, width = other["image"].shape[1:]
    away = np.abs(at - (np.array([width, height]) - 1) / 2)
    inside = np.all(away < np.array([width, height]) / 2, axis=1)
    return inside.reshape(one["image"].shape[1:])


def matched_photometry(
    pair: dict, skies: dict, parts: np.ndarray, masked: np.ndarray
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n band"]]:
    """Counts of every HST segment, and in HSC those of the segment seen with its PSF."""
    hst, hsc = pair["HST"], pair["HSC"]
    sharp = hst["image"][0] - skies["HST"].level[0]
    height, width = hsc["image"].shape[1:]
    middle = (np.array(sharp.shape[::-1]) - 1) / 2
    sky = hst["wcs"].all_pix2world([middle, middle + np.array([0, 1])], 0)
    at, above = hsc["wcs"].all_world2pix(sky, 0)
    scale = float(np.hypot(*(above - at)))  # HST pixel [HSC pixel]
    shift = at - (np.array([width, height]) - 1) / 2
    stamps = [np.where(parts == k + 1, sharp, 0.0) for k in range(parts.max())]
    counts = np.array([stamp.sum() for stamp in stamps])
    fluxes = []
    for plane, level, psf in zip(
        hsc["image"], skies["HSC"].level, hsc["psf"], strict=True
    ):
        kernel = galsim.InterpolatedImage(galsim.Image(psf), scale=1.0, flux=1.0)
        columns = [np.ones((height, width))]  # what is left of the sky
        for stamp, flux in zip(stamps, counts, strict=True):
            source = galsim.InterpolatedImage(
                galsim.Image(stamp), scale=scale, flux=flux
            )
            seen = galsim.Convolve(source, kernel).shift(*shift)
            columns.append(
                seen.drawImage(nx=width, ny=height, scale=1.0, method="no_pixel").array
            )
        design = np.stack([column[~masked] for column in columns], axis=1)
        ratio = np.linalg.lstsq(design, (plane - level)[~masked], rcond=None)[0]
        fluxes.append(ratio[1:] * counts)
    return counts, np.stack(fluxes, axis=1)


def zero_points(
    sharp: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, "n band"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " band"]:
    """Zero point of each HSC band minus that of F814W [mag] that makes colours likely.

    The likelihood of a galaxy is the density of the colours of simulated galaxies of 21 to 25 mag, each
    widened by `SCATTER` in every band.
    """
    galaxies = draw_galaxies(GALAXIES, rng, mag_limit=25.0, mag_bright=21.0)
    magnitudes = {b: -2.5 * np.log10(total_flux(galaxies, b)) for b in HSC + HST}
    locus = np.stack([magnitudes[b] - magnitudes[HST[0]] for b in HSC], axis=1)
    colours = -2.5 * np.log10(counts / sharp[:, None])

    def loss(zero):
        away = (colours[:, None] + zero - locus[None]) / SCATTER
        return -np.sum(logsumexp(-0.5 * np.sum(away**2, axis=-1), axis=-1))

    start = np.median(locus, axis=0) - np.median(colours, axis=0)
    starts = start + np.concatenate(
        [np.zeros((1, 5)), 0.2 * rng.standard_normal((7, 5))]
    )
    look = {"xatol": 1e-3, "fatol": 1e-3, "maxiter": 4000}
    fits_ = [minimize(loss, x, method="Nelder-Mead", options=look) for x in starts]
    return min(fits_, key=lambda fit: fit.fun).x


def centred(
    psf: Float[np.ndarray, "band size size"],
) -> Float[np.ndarray, "band size size"]:
    """PSF images shifted by whole pixels to where their core is nearest to the middle."""
    away = np.round(np.mean([centroid(plane) for plane in psf], axis=0)).astype(int)
    return np.roll(psf, -away, axis=(1, 2))


def main(folder: Path, out: Path, seed: int) -> None:
    """Measure, calibrate, write."""
    pair = read_pair(folder)
    skies = {
        k: measure_sky(v["image"], v["psf"], LIT[k], GROWTH[k]) for k, v in pair.items()
    }
    found = find(pair["HST"]["image"], pair["HST"]["psf"], skies["HST"])
    own = find(pair["HSC"]["image"], pair["HSC"]["psf"], skies["HSC"])
    ra, dec = pair["HST"]["wcs"].all_pix2world(found["x"], found["y"], 0)
    seen = np.stack(pair["HSC"]["wcs"].all_world2pix(ra, dec, 0)[::-1], axis=-1)
    pixel = 3600 * abs(pair["HSC"]["wcs"].pixel_scale_matrix[1, 1])
    limit = APART / pixel
    masked = unmodelled(skies["HSC"], seen, limit)
    apart = np.hypot(own["y"][:, None] - seen[:, 0], own["x"][:, None] - seen[:, 1])
    outside = np.min(apart, axis=1) > limit
    own = own[~outside]
    # The joint fit takes what both show; alone HSC shall have no more.
    masked |= ~shown(pair["HSC"], pair["HST"])
    print(
        f"{len(found)} sources in HST, {len(own)} in HSC and {outside.sum()} that HST does not"
        f" show; {masked.sum()} pixels of HSC are masked"
    )
    whole = find(pair["HST"]["image"], pair["HST"]["psf"], skies["HST"], WHOLE)
    parts = segments(skies["HST"], np.stack([whole["y"], whole["x"]], axis=-1))
    sharp, counts = matched_photometry(pair, skies, parts, masked)
    order = np.argsort(-sharp)[:BRIGHTEST]
    zero = zero_points(sharp[order], counts[order], stage_rng(seed, "zero_points"))
    gain = ACS_SIGMA / skies["HST"].sigma[0] * 10 ** (0.4 * (MAGZERO - ACS_MAGZERO))
    gains = {"HST": np.array([gain]), "HSC": gain * 10 ** (-0.4 * zero)}
    out.mkdir(parents=True, exist_ok=True)
    found["ra"], found["dec"] = ra, dec
    own["ra"], own["dec"] = pair["HSC"]["wcs"].all_pix2world(own["x"], own["y"], 0)
    catalogs = {"HST": found, "HSC": own}
    for name, bands in (("HST", HST), ("HSC", HSC)):
        one, sky = pair[name], skies[name]
        factor = gains[name][:, None, None]
        sigma = gains[name] * sky.sigma
        print(f"{name}: sigma of a pixel {np.round(sigma, 5)} at zero point {MAGZERO}")
        write_field(
            out / f"{name.lower()}.fits",
            image=factor * (one["image"] - sky.level[:, None, None]),
            variance=np.broadcast_to(sigma[:, None, None] ** 2, one["image"].shape),
            psf=centred(one["psf"]),
            bands=bands,
            magzero=MAGZERO,
            wcs=one["wcs"],
            correlation=correlation_of(one["image"], sky, REACH),
            mask=np.broadcast_to(masked, one["image"].shape) if name == "HSC" else None,
            catalog=catalogs[name]["id", "x", "y", "ra", "dec"],
        )
    found["id", "ra", "dec"].write(out / "hst_sources.csv", overwrite=True)
    hsc = "cosmos_pair\thsc_cosmos\thsc.fits"
    tables = {
        "joint": ("cosmos_pair\thst_cosmos_30mas\thst.fits\t", f"{hsc}\t"),
        "alone": (f"{hsc}\t",),
        "known": (f"{hsc}\thst_sources.csv",),
    }
    for name, rows in tables.items():
        text = "\n".join(["field\tinstrument\tpath\tcatalog", *rows])
        (out / f"{name}.tsv").write_text(text + "\n")
    for k in order:
        colours = -2.5 * np.log10(counts[k] / sharp[k]) + zero
        mag = ACS_MAGZERO - 2.5 * np.log10(sharp[k] * ACS_SIGMA / skies["HST"].sigma[0])
        print(f"galaxy {k}: F814W {mag:.2f}, grizy - F814W {np.round(colours, 2)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.pair, arguments.out, arguments.seed)
