"""Instruments: bands, pixel scale, seeing and depth of the surveys that are simulated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import galsim
import numpy as np
from jaxtyping import Float

from blendem.prior.pca import Metric

# Zero point of every simulated image: mag = MAGZERO - 2.5 log10(flux), AB; as HSC coadds.
MAGZERO = 27.0
FWHM = 2.3548  # of a Gaussian, in sigma
FLUX_WEIGHT = 0.75  # power of the flux by which a galaxy counts (docs/decisions.md)


@dataclass(frozen=True)
class Instrument:
    """A camera and the depth of one survey made with it.

    Attributes:
        name: Key in `INSTRUMENTS`.
        bands: Names of the bands, in order.
        pixel_scale: Side of a pixel [arcsec].
        psf_fwhm: FWHM of the Moffat PSF before the pixel response [arcsec], per band.
            Published seeing is measured on pixels; taking it for the value before them
            makes an HSC PSF 2 % too wide.
        psf_beta: Exponent of the Moffat profile.
        sky_sigma: Standard deviation of the noise of a pixel, uncorrelated [image unit at
            `magzero`], per band.
        survey: What the depth stands for.
        references: Where the numbers come from.
        magzero: AB magnitude of one unit of flux.

    Raises:
        ValueError: If the per-band numbers do not match `bands` or are not positive.
    """

    name: str
    bands: tuple[str, ...]
    pixel_scale: float
    psf_fwhm: tuple[float, ...]
    psf_beta: float
    sky_sigma: tuple[float, ...]
    survey: str
    references: tuple[str, ...] = field(repr=False)
    magzero: float = MAGZERO

    def __post_init__(self):
        for what in ("psf_fwhm", "sky_sigma"):
            values = getattr(self, what)
            if len(values) != len(self.bands) or min(values, default=0) <= 0:
                raise ValueError(
                    f"instrument {self.name}: `{what}` must hold one positive number for"
                    f" each of the bands {self.bands}; got {values}."
                )

    def index(self, band: str) -> int:
        """Position of `band` in `bands`.

        Raises:
            ValueError: If the instrument has no such band.
        """
        if band not in self.bands:
            raise ValueError(
                f"instrument {self.name} has no band {band!r}; choose from {self.bands}."
            )
        return self.bands.index(band)

    def only(self, bands: Sequence[str]) -> "Instrument":
        """The instrument with those of its bands that `bands` names, in its own order.

        Raises:
            ValueError: If it has none of them.
        """
        kept = [i for i, band in enumerate(self.bands) if band in bands]
        return replace(
            self,
            **{
                name: tuple(getattr(self, name)[i] for i in kept)
                for name in ("bands", "psf_fwhm", "sky_sigma")
            },
        )

    def under(self, seeing: float = 1.0, depth: float = 0.0) -> "Instrument":
        """The instrument under other conditions.

        Args:
            seeing: Factor of the FWHM of the PSF.
            depth: How much deeper it is [mag]; below 0: shallower.
        """
        return replace(
            self,
            psf_fwhm=tuple(seeing * x for x in self.psf_fwhm),
            sky_sigma=tuple(10 ** (-0.4 * depth) * x for x in self.sky_sigma),
        )

    @property
    def reference_band(self) -> str:
        """The band in which shapes are measured: i where there is one, else the first."""
        return "i" if "i" in self.bands else self.bands[0]


def moffat(instrument: Instrument, band: str) -> galsim.Moffat:
    """PSF of a band before the pixel response, unit flux, sizes in arcsec."""
    fwhm = instrument.psf_fwhm[instrument.index(band)]
    return galsim.Moffat(beta=instrument.psf_beta, fwhm=fwhm)


def effective_psf(
    instrument: Instrument, size: int = 41
) -> Float[np.ndarray, "band size size"]:
    """Draw the PSF of each band with the pixel response, centred, of sum 1.

    The light outside the image (0.1 % at HSC's 0.8" and 41 pixels) is renormalised away.

    Args:
        instrument: The instrument.
        size: Side of the image [pixel], odd.

    Raises:
        ValueError: If `size` is even, which leaves no central pixel.
    """
    images = _psf_images(instrument, size)
    return images / images.sum((1, 2), keepdims=True)


def light_inside(instrument: Instrument, size: int = 41) -> Float[np.ndarray, " band"]:
    """Share of the light of a point source that the PSF images of this side hold, per band."""
    return _psf_images(instrument, size).sum((1, 2))


def _psf_images(
    instrument: Instrument, size: int
) -> Float[np.ndarray, "band size size"]:
    """PSF of each band with the pixel response, of unit flux with what is outside."""
    if size % 2 == 0:
        raise ValueError(
            f"`size` must be odd so that the PSF has a central pixel; got {size}."
        )
    return np.stack(
        [
            moffat(instrument, band)
            .drawImage(nx=size, ny=size, scale=instrument.pixel_scale, dtype=float)
            .array
            for band in instrument.bands
        ]
    )


def depth_to_sigma(
    depth: float,
    fwhm: float,
    pixel_scale: float,
    beta: float,
    *,
    magzero: float = MAGZERO,
) -> float:
    """Noise of a pixel at which a point source of magnitude `depth` has S/N = 5.

    The optimal (PSF-weighted) flux of a point source in white noise has the error
    `sigma / sqrt(sum P^2)`, P the effective PSF of sum 1, hence

        sigma = 10^(-0.4 (depth - magzero)) / 5 * sqrt(sum P^2)

    Args:
        depth: 5-sigma depth for point sources [AB mag].
        fwhm: Seeing [arcsec].
        pixel_scale: Side of a pixel [arcsec].
        beta: Moffat exponent of the seeing.
        magzero: AB magnitude of one unit of flux.

    Returns:
        Standard deviation of a pixel [image unit at `magzero`].
    """
    psf = galsim.Moffat(beta=beta, fwhm=fwhm)
    image = psf.drawImage(nx=101, ny=101, scale=pixel_scale, dtype=float).array
    return float(10 ** (-0.4 * (depth - magzero)) / 5 * np.sqrt(np.sum(image**2)))


def _from_depths(depths: tuple[float, ...], **settings) -> Instrument:
    scale, beta = settings["pixel_scale"], settings["psf_beta"]
    sigma = [
        depth_to_sigma(depth, fwhm, scale, beta)
        for depth, fwhm in zip(depths, settings["psf_fwhm"], strict=True)
    ]
    return Instrument(sky_sigma=tuple(sigma), **settings)


# Moffat exponent of HSC: fits to the five coadd PSFs of a COSMOS patch give 2.7 to 3.4.
_HSC = dict(bands=tuple("grizy"), pixel_scale=0.168, psf_beta=3.1)
_GALCHEAT = "galcheat 1.1.3, survey LSST (LSST Science Requirements; SMTN-002)"

_ALL = (
    _from_depths(
        (26.5, 26.5, 26.2, 25.2, 24.4),
        name="hsc_wide",
        psf_fwhm=(0.79, 0.75, 0.61, 0.68, 0.68),
        survey="HSC-SSP PDR3 Wide: median seeing, 5-sigma depth for point sources",
        references=("Aihara et al. 2022, PASJ 74, 247, table of depths",),
        **_HSC,
    ),
    _from_depths(
        (27.4, 27.1, 26.9, 26.3, 25.3),
        name="hsc_deep",
        psf_fwhm=(0.83, 0.77, 0.66, 0.78, 0.70),
        survey="HSC-SSP PDR3 Deep+UltraDeep: median seeing, 5-sigma depth",
        references=("Aihara et al. 2022, PASJ 74, 247, table of depths",),
        **_HSC,
    ),
    # sigma = sqrt(sky electrons per pixel) / (exposure time 10^(0.4 (27 - zeropoint))),
    # with the sky, total exposure times and zero points of galcheat.
    Instrument(
        name="lsst_10yr",
        bands=tuple("ugrizy"),
        pixel_scale=0.2,
        psf_fwhm=(0.90, 0.86, 0.81, 0.79, 0.77, 0.76),
        # Kolmogorov turbulence: Trujillo et al. 2001, MNRAS 328, 977.
        psf_beta=4.765,
        sky_sigma=(0.04077, 0.02027, 0.02345, 0.03785, 0.07285, 0.16843),
        survey="Rubin LSST, ten years, sky noise only",
        references=(_GALCHEAT,),
    ),
    # Sky 22.0 mag/arcsec^2 in F814W, 2028 s, zero point 25.94 (galcheat 1.1.3, survey
    # COSMOS) give 0.0181 on a 0.05" pixel; read noise of four exposures (5 electrons each,
    # ACS Instrument Handbook) makes it 0.0223.
    Instrument(
        name="hst_f814w",
        bands=("f814w",),
        pixel_scale=0.05,
        psf_fwhm=(0.095,),
        # A Moffat is a stand-in for the diffraction pattern: wings, but no rings or spikes.
        psf_beta=2.5,
        sky_sigma=(0.0223,),
        survey="COSMOS HST/ACS F814W, drizzled to 0.05 arcsec",
        references=(
            "Koekemoer et al. 2007, ApJS 172, 196",
            "Leauthaud et al. 2007, ApJS 172, 219",
            "galcheat 1.1.3, survey COSMOS",
        ),
    ),
)

INSTRUMENTS: Mapping[str, Instrument] = MappingProxyType({x.name: x for x in _ALL})


def seen_by(
    names: Sequence[str],
    bands: Sequence[str],
    *,
    psf_sigma: float,
    pixel_scale: float,
    weight: Float[np.ndarray, " n"],
) -> Metric:
    """What counts in a basis of stamps: seeing and noise of instruments.

    Args:
        names: Of the instruments; the first that has a band sees it.
        bands: Of the stamps.
        psf_sigma: Sigma of the model PSF [model pixel].
        pixel_scale: Side of a model pixel [arcsec].
        weight: Of every stamp.

    Raises:
        ValueError: If no instrument has a band.
    """
    eyes = [instrument_of(names, band) for band in bands]
    seeing = min(e.psf_fwhm[e.index(b)] for e, b in zip(eyes, bands, strict=True))
    seeing /= pixel_scale * FWHM
    # Noise of a model pixel: that of larger ones is shared out.
    noise = [
        e.sky_sigma[e.index(b)] * pixel_scale / e.pixel_scale
        for e, b in zip(eyes, bands, strict=True)
    ]
    return Metric(
        blur=float(np.sqrt(max(seeing**2 - psf_sigma**2, 0.0))),
        band_weight=1 / np.asarray(noise),
        weight=weight,
    )


def instrument_of(names: Sequence[str], band: str) -> Instrument:
    """The first of some instruments that has a band.

    Raises:
        ValueError: If none has it.
    """
    for name in names:
        if band in INSTRUMENTS[name].bands:
            return INSTRUMENTS[name]
    known = {name: INSTRUMENTS[name].bands for name in names}
    raise ValueError(f"no instrument has band {band!r}; there are {known}")
