"""Joint posterior draws of the galaxies of every blend of a chunk and the dust before them."""

import logging
import time
from pathlib import Path

import numpy as np

from blendem.config import DustConfig
from blendem.inference.dust import DustSettings, sample
from blendem.inference.dust_blend import dust_blend
from blendem.inference.dust_model import DustModel
from blendem.io.blends import BlendSet, read_blends
from blendem.io.dust import read_dust_priors, read_dusty
from blendem.io.products import read_h5, write_h5
from blendem.io.table import FieldRow
from blendem.logs import configure_logging
from blendem.measure.sources import point_image
from blendem.precision import single_precision
from blendem.prior.dust import attenuation_law, unit_flux
from blendem.rng import stage_key
from blendem.survey.dusty import band_wavelengths

LOG = logging.getLogger(__name__)
PER_BLEND = ("chi2", "n_data", "acceptance", "defect")


def main(
    rows: list[FieldRow],
    blends: Path,
    priors: tuple[Path, Path],
    span: Path,
    output: Path,
    config: DustConfig,
    draws: int,
    seed: int,
) -> None:
    """Blend after blend; one without galaxies, or whose draws fail, has no result."""
    start = time.perf_counter()
    data = read_blends(blends)
    galaxy, dust = read_dust_priors(*priors)
    basis = galaxy.basis
    model = single_precision(DustModel.of(galaxy, dust, config.slope_sd))
    stamps = read_h5(span)[0]["stamps"]
    redshift = redshifts_of(data, rows, config.redshift, basis.bands)
    wave = band_wavelengths(basis.bands)
    point = point_image(basis.mean.shape[-1], float(basis.psf_sigma))
    settings = DustSettings(steps=config.steps, corrections=config.corrections)
    e = np.full((draws, len(redshift), model.n_latent), np.nan, np.float32)
    per_blend = {name: np.full(len(data.names), np.nan) for name in PER_BLEND}
    for row, name in enumerate(data.names):
        blend, members = data.blend(row), data.members(row)
        if blend is None or not np.isfinite(redshift[members]).any():
            continue
        # Stars have no redshift, and no law.
        z = np.nan_to_num(redshift[members])
        law, tilt = attenuation_law(wave, z)
        field = data.fields[data.blends["field"][row]]
        ready = dust_blend(
            blend,
            stamps,
            law,
            tilt,
            unit_flux(field["magzero"]),
            psf_sigma=float(basis.psf_sigma),
            rank=config.rank,
            point=point,
        )
        key = stage_key(seed, f"sample_dust/{name}")
        made = sample(model, ready.likelihood, draws, settings, key=key)
        if not np.isfinite(made.e).all():
            LOG.warning("%s: draws are not finite", name)
            continue
        e[:, members[ready.galaxies]] = made.e
        numbers = (
            made.chi2.mean(), ready.n_data, made.acceptance, made.defect.mean()
        )  # fmt: skip
        for column, value in zip(PER_BLEND, numbers, strict=True):
            per_blend[column][row] = value
    seconds = time.perf_counter() - start
    LOG.info("%d blends, %d draws each: %.1f s", len(data.names), draws, seconds)
    arrays = {"e": e, "redshift": redshift, "blends": per_blend}
    write_h5(output, arrays, {"seconds": seconds})


def redshifts_of(
    data: BlendSet, rows: list[FieldRow], column: str, bands: tuple[str, ...]
) -> np.ndarray:
    """Redshift of every galaxy of a chunk, NaN for stars."""
    redshift = np.full(len(data.sources["id"]), np.nan)
    for row in rows:
        catalog = read_dusty(row, column, bands).catalog
        known = dict(zip(catalog["id"].tolist(), catalog[column], strict=True))
        mine = data.sources["field"] == row.field
        for k in np.flatnonzero(mine & (data.sources["type"] == "galaxy")):
            redshift[k] = known[int(data.sources["id"][k])]
    return redshift


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        [FieldRow.of(row) for row in params.rows],
        Path(given.blends),
        (Path(given.galaxy), Path(given.dust)),
        Path(given.span),
        Path(snakemake.output.posterior),
        DustConfig(**params.dust),
        params.draws,
        params.seed,
    )
