"""Settings of a run: typed, validated once, the only place where defaults stand.

Snakemake hands over a plain mapping; `load_config` turns it into a frozen `RunConfig` or
names every bad field at once. Rules pass one section each, so that changing `plot` does
not retrain the prior.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

# In place of a path: a prior that comes with the project.
SHIPPED = "shipped"
# The names of `blendem.survey.instruments.INSTRUMENTS`, repeated here because importing
# GalSim costs every Snakemake job a second; a test compares the two.
InstrumentName = Literal["hsc_wide", "hsc_deep", "lsst_10yr", "hst_f814w"]
Population = Literal["realistic", "wrong", "broad"]
# Directions beyond `prior.modes` of the range finder, `prior.pca.OVERSAMPLING`, and the
# number of symmetric copies of a stamp, `prior.symmetry.N_SYMMETRIES`.
PCA_OVERSAMPLING, N_SYMMETRIES = 24, 8


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every bad field."""


def _none_if_empty(value: Any) -> Any:
    """`--config fields=` and `fields=null` arrive as strings and mean: not given."""
    if isinstance(value, str) and value.strip().lower() in {"", "null", "none", "~"}:
        return None
    return value


def _text(value: Any) -> Any:
    """YAML reads a run named 2024 as a number; it is a name all the same."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value


Text = Annotated[str, BeforeValidator(_text)]
OptionalPath = Annotated[str | None, BeforeValidator(_none_if_empty)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EpochConfig(Section):
    """One exposure of a simulated field."""

    mjd: float = Field(description="when [day]")
    reference: bool = Field(
        False, description="before all transients, which are known to be off"
    )
    seeing: float = Field(
        1.0, gt=0.3, lt=4, description="factor of the FWHM of the PSF"
    )
    depth: float = Field(
        0.0, ge=-5, le=5, description="how much deeper than the instrument says [mag]"
    )
    shift: tuple[float, float] = Field(
        (0.0, 0.0), description="of the pointing (y, x) [pixel]; not of the first epoch"
    )
    rotation: float = Field(
        0.0, description="of the camera [deg]; not of the first epoch"
    )


class TransientsConfig(Section):
    """Point sources that appear on galaxies."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of the blends (of the galaxies in mode `scatter`) that have one",
    )
    mag_bright: float = Field(20.5, ge=14, le=28, description="brightest peak [mag, i]")
    mag_limit: float = Field(24.0, ge=14, le=30, description="faintest peak [mag, i]")


class SimulateConfig(Section):
    """Simulated fields; used where `fields` is null."""

    instrument: InstrumentName = Field("hsc_deep", description="whose noise and seeing")
    also: tuple[InstrumentName, ...] = Field(
        (),
        description="other instruments that observe the same fields; all are fitted jointly. The"
        " model has the bands of all and the smallest pixel, unless `frame` says otherwise",
    )
    n_fields: PositiveInt = Field(2, description="number of fields")
    shape: tuple[PositiveInt, PositiveInt] = Field(
        (256, 256), description="height and width of a field [pixel]"
    )
    mode: Literal["scatter", "blends"] = Field(
        "scatter",
        description="uniform positions, or isolated blends on a grid of tiles",
    )
    n_blends: PositiveInt = Field(16, description="blends per field in mode `blends`")
    density: PositiveFloat = Field(1.0, description="times the real surface density")
    mag_limit: float = Field(25.0, ge=18, le=30, description="faintest galaxy [mag, i]")
    mag_bright: float = Field(
        18.0, ge=14, le=23, description="brightest galaxy and star [mag, i]"
    )
    centroid_error: NonNegativeFloat = Field(
        0.0, description="sd of the catalog positions about the truth [pixel]"
    )
    star_density: NonNegativeFloat = Field(2.0, description="stars [per arcmin^2]")
    undetected_limit: Annotated[
        Annotated[float, Field(le=30)] | None, BeforeValidator(_none_if_empty)
    ] = Field(
        None,
        description="galaxies from mag_limit to this magnitude are in the image and in no"
        " catalog; null: none",
    )
    population: Population = Field(
        "realistic", description="galaxies; `wrong` is Exponential only, for EM tests"
    )
    epochs: tuple[EpochConfig, ...] = Field(
        (),
        description="exposures of every field, each an observation of its own; none: one image",
    )
    transients: TransientsConfig = TransientsConfig()

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the observations of a field besides the first."""
        return (*self.also, *(f"epoch{i}" for i in range(1, len(self.epochs))))

    @model_validator(mode="after")
    def _check(self) -> "SimulateConfig":
        if self.also and self.epochs:
            raise ValueError(
                "also: other instruments and epochs cannot be simulated together; leave one out"
            )
        if self.epochs and (self.epochs[0].rotation or any(self.epochs[0].shift)):
            raise ValueError(
                "epochs: the first one sets the field: no shift and no rotation"
            )
        if self.transients.share > 0 and (
            len(self.epochs) < 2 or all(e.reference for e in self.epochs)
        ):
            raise ValueError(
                "transients: they need `epochs`, two or more, that are not all `reference`"
            )
        if len({self.instrument, *self.also}) != 1 + len(self.also):
            raise ValueError(
                f"also: {self.also} names an instrument twice, or `instrument` again"
            )
        if (
            self.undetected_limit is not None
            and self.undetected_limit <= self.mag_limit
        ):
            raise ValueError(
                f"undetected_limit: {self.undetected_limit} must be fainter than mag_limit ="
                f" {self.mag_limit}"
            )
        return self


class FrameConfig(Section):
    """The grid on which sources are modelled."""

    stamp: PositiveInt = Field(
        49, description="side of a source's stamp [model pixel], odd"
    )
    psf_sigma: float = Field(
        0.7, ge=0.5, le=3, description="sigma of the Gaussian model PSF [model pixel]"
    )
    bands: tuple[Text, ...] | None = Field(
        None, description="model bands, in order; null: those of the instrument"
    )
    pixel_scale: PositiveFloat | None = Field(
        None, description="model pixel [arcsec]; null: that of the first observation"
    )

    @model_validator(mode="after")
    def _check(self) -> "FrameConfig":
        if self.stamp % 2 == 0:
            raise ValueError(
                f"stamp: must be odd so that it has a central pixel, got {self.stamp};"
                f" use {self.stamp + 1}"
            )
        if self.bands is not None and not self.bands:
            raise ValueError("bands: empty; name at least one band, or give null")
        if self.bands is not None and len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands: must name each band once, got {self.bands}")
        return self


class StampsConfig(Section):
    """Training stamps of the first prior."""

    n: PositiveInt = Field(2000, description="number of galaxies")
    chunks: PositiveInt = Field(2, description="jobs that draw them")
    mag_limit: float = Field(25.0, ge=18, le=30, description="faintest galaxy [mag, i]")
    mag_bright: float = Field(
        18.0, ge=14, le=23, description="brightest galaxy [mag, i]"
    )
    population: Population = Field("realistic", description="as in `simulate`")

    def in_chunk(self, chunk: int) -> int:
        """Number of galaxies that one of the jobs draws."""
        return len(range(chunk, self.n, self.chunks))

    @model_validator(mode="after")
    def _check(self) -> "StampsConfig":
        if self.chunks > self.n:
            raise ValueError(
                f"chunks: {self.chunks} is more than n = {self.n}; lower it"
            )
        return self


class NetworkConfig(Section):
    """Network that corrects the mixture of the latent tier."""

    width: PositiveInt = Field(512, description="neurons per layer")
    blocks: PositiveInt = Field(3, description="residual blocks")


class TrainConfig(Section):
    """Training of a network; the defaults are those of `prior.train.Settings`."""

    steps: PositiveInt = Field(12000, description="optimizer steps")
    batch: PositiveInt = Field(256, description="galaxies per step")
    learning_rate: float = Field(
        1.5e-3, gt=0, le=1, description="of Adam at the start; it falls to zero"
    )
    evaluate: PositiveInt = Field(
        1000, description="steps between two evaluations of the held-out loss"
    )
    patience: PositiveInt = Field(
        6, description="evaluations without a new best one before training stops"
    )


class UNetConfig(Section):
    """U-Net tier: network and training; the defaults are those of the library."""

    channels: tuple[PositiveInt, ...] = Field(
        (48, 96),
        min_length=1,
        description="channels of each level; each has half the side of the one before",
    )
    patch: PositiveInt = Field(
        4, description="side of the patches that pixels are gathered in [model pixel]"
    )
    blocks: PositiveInt = Field(1, description="residual blocks per level, each way")
    steps: PositiveInt = Field(
        2000, description="optimizer steps; 1200 take 4 minutes on two cores"
    )
    batch: PositiveInt = Field(64, description="galaxies per step")
    learning_rate: float = Field(
        2e-3, gt=0, le=1, description="of Adam at the start; it falls to zero"
    )
    evaluate: PositiveInt = Field(
        250, description="steps between two evaluations of the held-out loss"
    )
    patience: PositiveInt = Field(
        4, description="evaluations without a new best one before training stops"
    )


class PriorConfig(Section):
    """What galaxies look like."""

    tier: Literal["gaussian", "latent", "unet"] = Field(
        "latent",
        description="kind of prior: Gaussian in the principal components, or a diffusion"
        " model of these (latent) or of pixels (unet)",
    )
    modes: PositiveInt = Field(128, description="number of principal modes")
    flux_modes: bool = Field(
        False,
        description="one more mode per band, so that the basis holds the whole flux of every"
        " galaxy: faint wings are then in the errors of fluxes",
    )
    latent: PositiveInt = Field(
        64,
        description="modes that the diffusion moves; the rest, fine detail that only bright"
        " galaxies show, stay Gaussian; tier latent",
    )
    components: PositiveInt = Field(
        64, description="Gaussians of the mixture; tier latent"
    )
    amplitude_jitter: NonNegativeFloat = Field(
        0.6,
        description="sd of ln(amplitude) in training; well above the errors of refined"
        " amplitudes (0.3 in the strongest blends), which come from the same data and"
        " would count twice",
    )
    colour_jitter: NonNegativeFloat = Field(
        0.0,
        description="sd of ln(flux) per band added in training; real colours are broader"
        " than any set of templates",
    )
    brightness: bool = Field(
        True,
        description="whether shapes and colours depend on the magnitude, as they do in the"
        " stamps; their magnitudes must be distributed as those of the galaxies in the fields;"
        " tier latent",
    )
    start: OptionalPath = Field(
        None,
        description="path of a prior to start from; `shipped`: the one of `priors/` that has"
        " the bands of the run (`prior: shipped` is short for it); null: train one from stamps",
    )
    basis: OptionalPath = Field(
        None,
        description="path of a prior whose basis and Gaussian moments are taken; null:"
        " principal components of the stamps. EM cannot leave its basis, so that it should be"
        " broader than the galaxies that it starts from",
    )
    network: NetworkConfig | None = Field(
        None,
        description="network that corrects the mixture, trained by `train`; null: none,"
        " which is more accurate (docs/calibration.md)",
    )
    train: TrainConfig = TrainConfig()
    unet: UNetConfig = UNetConfig()

    @model_validator(mode="after")
    def _check(self) -> "PriorConfig":
        if self.tier != "unet" and self.unet != UNetConfig():
            raise ValueError(
                f"unet: nothing of it is used with tier: {self.tier}; set `tier: unet`, or"
                " leave `unet` out"
            )
        if self.tier == "unet" and self.network is not None:
            raise ValueError(
                "network: it corrects the mixture of tier latent; the network of tier unet is"
                " set in `unet`: leave `network` out"
            )
        if self.tier == "unet" and self.train != TrainConfig():
            raise ValueError(
                "train: it trains the network of tier latent; steps, batch and learning_rate"
                " of tier unet are in `unet`: leave `train` out"
            )
        idle = self.tier == "latent" and self.network is None
        if idle and self.train != TrainConfig():
            raise ValueError(
                "train: nothing is trained without a network; set `network: {}` for one of"
                " default size, or leave `train` out"
            )
        return self


class EMConfig(Section):
    """Improving the prior from the blended observations."""

    laps: NonNegativeInt = Field(0, le=99, description="laps; 0 keeps the first prior")
    start: Literal["simulations", "map", "gaussian"] = Field(
        "simulations",
        description="where the first prior comes from: the simulated stamps; closed-form MAP"
        " fits of the blends; or draws under a Gaussian that EM finds from the blends alone."
        " The basis is that of the stamps or of prior.basis; tier latent",
    )
    start_iterations: PositiveInt = Field(
        8, description="EM iterations of the Gaussian of `start: gaussian`"
    )
    iterations: PositiveInt = Field(
        4,
        description="EM iterations within a lap: of E and M steps (gaussian), of the fit of"
        " the mixture to the draws (latent)",
    )
    draws: PositiveInt = Field(8, description="posterior draws per blend; tier latent")
    steps: PositiveInt = Field(
        20, description="noise levels of the E step; tier latent"
    )
    rows: PositiveInt = Field(
        40000, description="draws that the mixture is fitted to; tier latent"
    )
    broaden: NonNegativeFloat = Field(
        0.01,
        description="variance added to the first prior before lap 1 [variance of the basis];"
        " what a prior excludes is never learned; tier latent",
    )
    shrink: NonNegativeFloat = Field(
        30.0,
        description="weight of what all components have in common in the covariance of each"
        " [galaxies]; tier latent",
    )
    common: Literal["auto", "shape", "change"] = Field(
        "auto",
        description="what they have in common: one shape, which mends a wrong start soon and"
        " takes variance from fine modes lap by lap; their change since the lap before,"
        " which leaves a right start as it is; or, by how badly the prior fits, between"
        " both (docs/em.md); tier latent",
    )
    keep: NonNegativeFloat = Field(
        100.0,
        description="galaxies that the first prior counts for in every M step: draws of it are"
        " added to those of the blends, so that few blends cannot unlearn what they do not"
        " show; tier latent",
    )
    relax: float = Field(
        1.0,
        ge=1,
        lt=2,
        description="length of the M step: above 1 it goes beyond the fit (over-relaxation),"
        " which speeds up what the data hardly constrain; tier latent",
    )
    stop: NonNegativeFloat = Field(
        4.0,
        description="misfit of a right prior [nat per galaxy]: up to three times that, in this"
        " lap and the one before, steps are shortened, to none below 1.2 times: EM has"
        " converged; 0: all steps are whole"
        " (docs/em.md); tier latent",
    )
    held_out: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="part of the blends that EM never sees, to watch it; tier latent",
    )
    watch_every: PositiveInt = Field(
        1,
        description="laps from one look at the held-out blends to the next; the last one counts",
    )
    pixels_out: float = Field(
        0.2, gt=0, lt=1, description="part of their pixels that is predicted"
    )
    max_chi2: PositiveFloat = Field(
        1.3,
        description="blends whose chi2 under the first prior is above this times its"
        " expectation teach nothing: sources larger than the stamp, artefacts",
    )
    symmetric: bool = Field(True, description="keep the 8 symmetries of the square")
    min_eigenvalue: PositiveFloat = Field(
        1e-8, description="floor of the prior variance of a mode [training variance]"
    )


class DetectConfig(Section):
    """Finding sources where no catalog is given, and grouping them into blends."""

    threshold: PositiveFloat = Field(3.0, description="detection threshold [sigma]")
    minarea: PositiveInt = Field(5, description="smallest detection [pixel]")
    group_threshold: PositiveFloat = Field(
        3.0, description="sources above it in one footprint are one blend [sigma]"
    )
    max_sources: PositiveInt = Field(8, description="larger blends are split")


class NoiseConfig(Section):
    """Noise of the observations."""

    correlation: Literal["given", "estimate", "none"] = Field(
        "given",
        description="correlation of the noise of neighbouring pixels: that of the file, where"
        " it has one; estimated per field, observation and band from pixels without sources; or"
        " none",
    )
    reach: int = Field(
        3, ge=1, le=10, description="largest lag of the estimate along an axis [pixel]"
    )


class BucketConfig(Section):
    """Shape that blends are padded to; one compilation each."""

    sources: PositiveInt = Field(description="number of sources")
    size: int = Field(ge=8, description="side of the image [pixel]")


class BlendsConfig(Section):
    """Cutting blends out of the fields."""

    buckets: tuple[BucketConfig, ...] = Field(
        (
            BucketConfig(sources=4, size=64),
            BucketConfig(sources=8, size=64),
            BucketConfig(sources=8, size=112),
        ),
        min_length=1,
        description="shapes that blends are padded to",
    )
    group: Literal["footprint", "field"] = Field(
        "footprint",
        description="what is one blend: sources that share a detection footprint, or the"
        " whole field (ready-made cut-outs)",
    )
    batch: PositiveInt = Field(4, description="blends computed at once")
    margin: NonNegativeInt = Field(4, description="margin around a footprint [pixel]")
    magnify: Literal[1, 2, 4] = Field(
        2,
        description="largest factor by which the stamps of the prior are magnified for a galaxy that"
        " reaches beyond its own; tier unet: none",
    )


class TilesConfig(Section):
    """Cutting large fields of one observation into tiles, which are fields of their own."""

    size: Annotated[PositiveInt | None, BeforeValidator(_none_if_empty)] = Field(
        1024,
        description="largest side of a tile [pixel]; fields that are larger are cut; null: none"
        " is",
    )
    per_chunk: PositiveInt = Field(
        1, description="tiles that one job works on, where `chunks` is null"
    )

    @staticmethod
    def margin(blends: BlendsConfig) -> int:
        """What a tile holds about its own part: the largest blend that begins in it [pixel]."""
        return max(bucket.size for bucket in blends.buckets) + 16


class InferConfig(Section):
    """Posterior of a blend."""

    samples: int = Field(64, ge=2, description="posterior draws per blend")
    steps: PositiveInt = Field(
        20, description="noise levels of the reverse process; diffusion tiers"
    )
    corrector: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="step of the Langevin corrector [noise variance]; 0: off",
    )
    reference_band: Text = Field("i", description="band whose flux is the amplitude")
    amplitude_tolerance: NonNegativeFloat = Field(
        0.3,
        description="largest |ln| of the mean flux of the draws of a galaxy over its amplitude:"
        " beyond it amplitudes move to the draws, and the blend is drawn again; 0: never;"
        " tier latent",
    )
    refine_amplitudes: bool = Field(
        True, description="move amplitudes to the fluxes of the Gaussian posterior"
    )
    recentre: bool = Field(
        False,
        description="fit the catalog positions first, with two templates per source: for"
        " catalogs of whole pixels; it makes good positions of blended sources worse",
    )
    recentre_iterations: PositiveInt = Field(3, description="Gauss-Newton steps of it")
    centroid_prior: PositiveFloat = Field(
        0.3, description="sd of the catalog positions [model pixel]"
    )
    centroid_sigma: NonNegativeFloat = Field(
        0.05, description="sd of a centre, marginalised [model pixel]; 0: off"
    )
    offset_sigma: NonNegativeFloat = Field(
        0.0,
        description="prior sd of the astrometric offset of every observation of a blend from the"
        " first one [model pixel]; 0: positions agree",
    )
    sky: Literal["none", "flat"] = Field(
        "none", description="unknown flat sky per observation and band, or none"
    )
    sky_sigma: NonNegativeFloat = Field(
        0.3, description="prior sd of the flat sky [median pixel noise sigma]"
    )

    @model_validator(mode="after")
    def _check(self) -> "InferConfig":
        if self.sky == "flat" and self.sky_sigma == 0:
            raise ValueError("sky_sigma: 0 with sky: flat; give a width, or sky: none")
        if self.centroid_sigma == 0 and (self.sky == "flat" or self.offset_sigma > 0):
            # Unknowns of a blend are told apart by their number.
            raise ValueError(
                "centroid_sigma: 0 with sky: flat or offset_sigma above 0; give centroids a"
                " width, 0.001 pixel for known positions"
            )
        return self


class MapConfig(Section):
    """Closed-form fits, the classical comparison."""

    profile: Literal["sersic", "bulge_disk", "exponential"] = Field(
        "sersic", description="profile of a galaxy"
    )
    steps: PositiveInt = Field(150, description="optimizer steps")
    learning_rate: float = Field(
        0.1, gt=0, le=1, description="step of the unconstrained parameters"
    )


class DustConfig(Section):
    """Galaxies behind dust: two priors, one of galaxies and one of maps of A_V (docs/dust.md).

    The galaxies of the priors are those of `stamps`, without their dust.
    """

    redshift: Text = Field(
        "redshift",
        description="column of the catalogs with the redshifts of the galaxies",
    )
    modes: PositiveInt = Field(48, description="principal modes of galaxies")
    dust_modes: PositiveInt = Field(20, description="principal modes of maps of A_V")
    components: PositiveInt = Field(16, description="Gaussians of both mixtures")
    shrink: NonNegativeFloat = Field(
        30.0,
        description="weight of what all components have in common in the covariance of each"
        " [galaxies]",
    )
    link: Literal["softplus", "linear"] = Field(
        "softplus",
        description="A_V is positive, ln(1 + exp(field)); or the field itself",
    )
    slope_sd: NonNegativeFloat = Field(
        0.0,
        description="sd of a free slope of the law, k (lambda / 550 nm)^slope; 0: the law of"
        " Calzetti et al. 2000",
    )
    rank: PositiveInt = Field(
        40, description="numbers per band and source that a blend is compressed to"
    )
    steps: PositiveInt = Field(12, description="noise levels of the reverse process")
    corrections: NonNegativeInt = Field(
        16, description="Metropolis steps with the exact likelihood that end it"
    )
    aligned: bool = Field(
        False,
        description="simulated fields: the dust lies in the disc of its galaxy, which the priors"
        " do not know; else in that of another one",
    )


class PlotConfig(Section):
    """Figures; nothing else depends on this section."""

    max_blends: PositiveInt = Field(6, description="blends drawn per figure")
    max_sources: PositiveInt = Field(6, description="sources drawn per figure")
    n_samples: PositiveInt = Field(4, description="posterior draws shown per source")
    stretch: PositiveFloat = Field(
        5.0, description="linear range of the Lupton stretch [median pixel noise sigma]"
    )
    q: PositiveFloat = Field(8.0, description="softening Q of the Lupton stretch")
    rgb: tuple[Text, ...] = Field(
        ("i", "r", "g"), description="bands shown as red, green and blue"
    )
    dpi: int = Field(150, ge=30, le=1200, description="resolution [dot/inch]")

    @model_validator(mode="after")
    def _check(self) -> "PlotConfig":
        if len(self.rgb) not in (1, 3):
            raise ValueError(
                f"rgb: must name 3 bands (red, green, blue) or 1 (grey), got {self.rgb}"
            )
        return self


class RunConfig(Section):
    """Everything that defines a run."""

    run: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] = Field(
        "quickstart", description="name of the run; its output is results/<run>/"
    )
    title: Text = Field("", description="one line for the report")
    seed: NonNegativeInt = Field(
        0, le=2**32 - 1, description="seed of all random numbers"
    )
    fields: OptionalPath = Field(
        None, description="TSV that lists the observations; null: simulated fields"
    )
    chunks: Annotated[PositiveInt | None, BeforeValidator(_none_if_empty)] = Field(
        None,
        description="jobs over which fields and tiles are dealt; null: as many as large fields have"
        " tiles over `tiles.per_chunk`, or one",
    )
    simulate: SimulateConfig = SimulateConfig()
    frame: FrameConfig = FrameConfig()
    stamps: StampsConfig = StampsConfig()
    prior: PriorConfig = PriorConfig()
    em: EMConfig = EMConfig()
    detect: DetectConfig = DetectConfig()
    noise: NoiseConfig = NoiseConfig()
    blends: BlendsConfig = BlendsConfig()
    tiles: TilesConfig = TilesConfig()
    infer: InferConfig = InferConfig()
    map: MapConfig = MapConfig()
    dust: DustConfig | None = Field(
        None,
        description="fit galaxies and the dust in front of them, instead of all else that"
        " follows the blends (`{}`: with defaults); null: galaxies as they are seen",
    )
    plot: PlotConfig = PlotConfig()

    @model_validator(mode="after")
    def _check_sections_together(self) -> "RunConfig":
        problems = list(_conflicts(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _conflicts(config: RunConfig) -> Iterator[str]:
    """Fields that are fine alone and do not fit together."""
    stamp, bands = config.frame.stamp, config.frame.bands
    # The FFT grid has side >= size + (stamp + PSF) / 2 (`Renderer.of`); a stamp must fit.
    smallest = min(bucket.size for bucket in config.blends.buckets)
    if stamp > 2 * smallest:
        yield (
            f"frame.stamp: {stamp} pixels do not fit the FFT of the smallest"
            f" blends.buckets size, {smallest}; use buckets of {(stamp + 1) // 2} or more"
        )
    most = max(bucket.sources for bucket in config.blends.buckets)
    if most < config.detect.max_sources:
        yield (
            f"detect.max_sources: {config.detect.max_sources} is more than the largest"
            f" blends.buckets holds, {most}; lower it or add a bucket"
        )
    training = config.stamps.n * N_SYMMETRIES
    if config.prior.start is None and config.prior.modes + PCA_OVERSAMPLING > training:
        yield (
            f"prior.modes: {config.prior.modes} modes cannot be learned from stamps.n ="
            f" {config.stamps.n}; raise stamps.n to"
            f" {-(-(config.prior.modes + PCA_OVERSAMPLING) // N_SYMMETRIES)}"
        )
    if config.em.laps and config.prior.tier == "unet":
        yield (
            f"em.laps: {config.em.laps} with prior.tier: unet; EM refits a mixture or a Gaussian,"
            " no U-Net: use latent or gaussian, or set em.laps: 0"
        )
    if config.em.laps and config.prior.network is not None:
        yield (
            f"em.laps: {config.em.laps} with prior.network; EM refits the mixture, and a network"
            " would correct another one; leave `network` out, or set em.laps: 0"
        )
    if config.em.laps and config.prior.tier == "latent" and config.em.held_out == 0:
        yield (
            f"em.held_out: 0 with em.laps: {config.em.laps}; some blends must watch EM: raise"
            " em.held_out (0.3 where there are few)"
        )
    if config.em.start != "simulations":
        if config.prior.tier != "latent":
            yield (
                f"em.start: {config.em.start} needs prior.tier: latent; the Gaussian tier is"
                " improved from the blends by em.laps"
            )
        if config.prior.start is not None or config.prior.network is not None:
            yield (
                f"em.start: {config.em.start} makes the first prior from the blends; leave"
                " prior.start and prior.network out"
            )
    if config.prior.start is not None and config.prior.basis is not None:
        yield "prior.basis: prior.start has a basis of its own; leave one of them out"
    if bands is not None and config.infer.reference_band not in bands:
        yield (
            f"infer.reference_band: {config.infer.reference_band!r} is not among"
            f" frame.bands {bands}"
        )
    if config.dust is not None:
        yield from _dust_conflicts(config, config.dust)
    missing = [b for b in config.plot.rgb if bands is not None and b not in bands]
    if missing:
        yield f"plot.rgb: {missing} not among frame.bands {bands}"


def _dust_conflicts(config: RunConfig, dust: DustConfig) -> Iterator[str]:
    """What does not fit a run of galaxies behind dust."""
    if config.em.laps:
        yield f"dust: its priors are not improved from blends; set em.laps: 0, got {config.em.laps}"
    if config.simulate.others:
        yield (
            "dust: one observation is fitted; leave simulate.also and simulate.epochs out, got"
            f" {list(config.simulate.others)}"
        )
    if config.frame.bands is not None or config.frame.pixel_scale is not None:
        yield (
            "dust: its priors have bands and pixels of simulate.instrument; leave frame.bands"
            " and frame.pixel_scale out"
        )
    if config.prior.start is not None or config.prior.basis is not None:
        yield (
            "dust: its priors are fitted to simulated galaxies; leave prior.start and"
            " prior.basis out"
        )
    training = config.stamps.n * N_SYMMETRIES
    for name in ("modes", "dust_modes"):
        if getattr(dust, name) + PCA_OVERSAMPLING > training:
            yield (
                f"dust.{name}: {getattr(dust, name)} modes cannot be learned from stamps.n ="
                f" {config.stamps.n}; raise stamps.n"
            )


def load_config(source: Mapping[str, Any] | str | Path) -> RunConfig:
    """Validate a mapping, or the YAML file at a path.

    Numbers may be strings (YAML reads `1e-3` as one, and `--config` values are strings).

    Raises:
        ConfigError: If the file cannot be read or a field is bad. The message has one line
            per bad field: its path, what it got and, for an unknown key, the nearest
            known one.
    """
    if isinstance(source, str | Path):
        name, source = str(source), _read_yaml(Path(source))
    else:
        name = "the configuration"
    if not isinstance(source, Mapping):
        raise ConfigError(
            f"{name} must hold `key: value` lines, got {type(source).__name__}."
        )
    if source.get("prior") == SHIPPED:
        source = {**source, "prior": {"start": SHIPPED}}
    # A section that is written but left empty (`em:`) is None in YAML: its defaults.
    sections = {k for k, f in RunConfig.model_fields.items() if _model(f.annotation)}
    source = {k: v for k, v in source.items() if not (v is None and k in sections)}
    try:
        return RunConfig.model_validate(source)
    except ValidationError as error:
        errors = error.errors()
        # A list with a bad item is also called too short: keep the innermost message.
        errors = [
            e
            for e in errors
            if not any(
                o is not e and o["loc"][: len(e["loc"])] == e["loc"]
                for o in errors
                if len(o["loc"]) > len(e["loc"])
            )
        ]
        lines = [line for e in errors for line in _describe(e)]
        raise ConfigError(
            f"{name} has {len(lines)} bad field{'s' * (len(lines) != 1)}:\n"
            + "\n".join(f"  - {line}" for line in lines)
        ) from None


def with_start(config: RunConfig, start: str) -> RunConfig:
    """The same configuration with another `prior.start`."""
    prior = config.prior.model_copy(update={"start": start})
    return config.model_copy(update={"prior": prior})


def with_frame(
    config: RunConfig, bands: tuple[str, ...], pixel_scale: float
) -> RunConfig:
    """The same configuration with bands and pixel of the model where it is silent."""
    frame = config.frame
    frame = frame.model_copy(
        update={
            "bands": frame.bands or bands,
            "pixel_scale": frame.pixel_scale or pixel_scale,
        }
    )
    return config.model_copy(update={"frame": frame})


def config_hash(config: BaseModel) -> str:
    """Return 12 hexadecimal digits that name the values of a configuration or a section.

    It depends on the values only: defaults written out or left out give the same hash.
    """
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(
            f"cannot read configuration {path}: {error.strerror}; see config/ for examples."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the section in an annotation, through containers and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, UnionType):
        return next(filter(None, map(_model, get_args(annotation))), None)
    return None


def _known_keys(location: tuple) -> list[str]:
    """Keys that are allowed beside the one that `location` ends in."""
    model: type[BaseModel] = RunConfig
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _model(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _describe(error: Mapping[str, Any]) -> list[str]:
    """Lines for one pydantic error: path, what it got, what to do."""
    location = tuple(error["loc"])
    path = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        known = _known_keys(location)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return [f"{path}: unknown key; {advice}"]
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"])
        # Validators start their messages with the name of the field in their section.
        return [f"{path}.{line}" if path else line for line in text.splitlines()]
    got = "" if error["type"] == "missing" else f"got {error['input']!r}; "
    advice = error["msg"][0].lower() + error["msg"][1:]
    if path == "run":
        advice += " (letters, digits, `_`, `.` and `-`)"
    return [f"{path}: {got}{advice}"]
