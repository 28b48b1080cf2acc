"""Catalog, images and draws of every field of a chunk of galaxies behind dust."""

from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.config import DustConfig
from blendem.inference.batch import render_of
from blendem.inference.dust_model import DustModel
from blendem.io.blends import BlendSet, read_blends
from blendem.io.dust import read_dust_priors
from blendem.io.fetch import sha256_of
from blendem.io.fields import read_observation
from blendem.io.products import read_h5, write_catalog, write_h5, write_images
from blendem.io.table import FieldRow
from blendem.logs import configure_logging
from blendem.measure.dusty import dusty_columns, dusty_source
from blendem.precision import single_precision
from blendem.prior.dust import attenuation_law, unit_flux
from blendem.survey.dusty import band_wavelengths
from blendem.survey.extract import SourceFlag

FORMAT = "blendem-dust-1"


def main(
    rows: list[FieldRow],
    blends: Path,
    posterior: Path,
    priors: tuple[Path, Path],
    catalogs: list[Path],
    models: list[Path],
    samples: list[Path],
    config: DustConfig,
    reference_band: str,
    batch: int,
    meta: dict,
) -> None:
    """Measure all galaxies, then write field after field."""
    data, post = read_blends(blends), read_h5(posterior)[0]
    galaxy, dust = read_dust_priors(*priors)
    basis = galaxy.basis
    model = single_precision(DustModel.of(galaxy, dust, config.slope_sd))
    names = data.sources["field"]
    magzero = np.array([data.fields[name]["magzero"] for name in names])
    done = np.isfinite(post["e"]).all(axis=(0, 2))
    n, shape = len(names), basis.mean.shape
    values = np.full((len(post["e"]), n, shape[0] + 1), np.nan)
    images = {
        "GALAXY_MEAN": np.full((n, *shape), np.nan, np.float32),
        "GALAXY_STD": np.full((n, *shape), np.nan, np.float32),
        "DIMMED_MEAN": np.full((n, *shape), np.nan, np.float32),
        "A_V_MEAN": np.full((n, *shape[1:]), np.nan, np.float32),
        "A_V_STD": np.full((n, *shape[1:]), np.nan, np.float32),
    }
    wave, reference = band_wavelengths(basis.bands), basis.bands.index(reference_band)
    for k in np.flatnonzero(done):
        law, tilt = attenuation_law(wave, post["redshift"][k : k + 1])
        found = dusty_source(
            model, post["e"][:, k], law[0], tilt[0], unit_flux(magzero[k]), reference
        )
        values[:, k] = found.values
        for name, image in zip(
            images,
            (found.mean, found.std, found.dimmed, found.dust_mean, found.dust_std),
            strict=True,
        ):
            images[name][k] = image
    columns = _columns(data, post, done)
    columns |= dusty_columns(values, basis.bands, magzero)
    columns["flags"] = columns.pop("flags")
    seen = _seen(data, images["DIMMED_MEAN"], float(basis.psf_sigma), batch)
    meta = meta | {"PRIOR": sha256_of(priors[0]), "DUST": sha256_of(priors[1])}
    for path_catalog, path_models, path_samples in zip(
        catalogs, models, samples, strict=True
    ):
        name = path_catalog.stem
        observed = read_observation(next(r for r in rows if r.field == name))
        chosen = np.flatnonzero(names == name)
        table = Table({key: value[chosen] for key, value in columns.items()})
        write_catalog(path_catalog, table, meta, flux_unit=observed.unit)
        total = data.mosaic(name, seen, observed.image.shape)
        stamps = {
            key: (image[chosen], "mag", ("A_V",))
            if key.startswith("A_V")
            else (image[chosen], observed.unit, basis.bands)
            for key, image in images.items()
        }
        whole = {
            "SCI": observed.image,
            "MODEL": total,
            "RESIDUAL": observed.image - total,
            "VAR": observed.variance,
        }
        write_images(
            path_models,
            stamps | {k: (v, observed.unit, basis.bands) for k, v in whole.items()},
            sources=table["id", "x", "y", "blend"],
            meta=meta,
            unit=observed.unit,
            wcs=observed.wcs,
        )
        drawn = {
            "ids": data.sources["id"][chosen],
            "blend": columns["blend"][chosen],
            "redshift": post["redshift"][chosen],
            "e": post["e"][:, chosen],
            "flux": values[:, chosen, :-1],
            "A_V": values[:, chosen, -1],
        }
        write_h5(path_samples, drawn, meta | {"format": FORMAT, "unit": observed.unit})


def _columns(data: BlendSet, post: dict, done: np.ndarray) -> dict[str, np.ndarray]:
    """What a catalog says of a source beside fluxes and A_V."""
    sources, blend = data.sources, data.sources["blend"]
    columns = {key: sources[key] for key in ("id", "type", "x", "y", "ra", "dec")}
    columns["blend"] = data.blends["number"][blend]
    columns["redshift"] = post["redshift"]
    columns["chi2_blend"] = post["blends"]["chi2"][blend]
    columns["ndata_blend"] = np.nan_to_num(post["blends"]["n_data"][blend]).astype(int)
    columns["n_samples"] = np.where(done, len(post["e"]), 0)
    flags = sources["flags"].astype(int)
    failed = ~done & (sources["type"] == "galaxy")
    flags[failed & (flags & SourceFlag.TOO_LARGE == 0)] |= SourceFlag.FAILED
    columns["flags"] = flags
    return columns


def _seen(
    data: BlendSet, images: np.ndarray, psf_sigma: float, batch: int
) -> list[np.ndarray | None]:
    """Mean of the galaxies of every blend as its observation sees them."""
    out: list[np.ndarray | None] = [None] * len(data.names)
    for number, stack in enumerate(data.stacks):
        rows = np.flatnonzero(data.blends["stack"] == number)
        rows = rows[np.argsort(data.blends["index"][rows])]
        placed = np.zeros((*stack.present.shape, *images.shape[1:]), np.float32)
        for i, row in enumerate(rows):
            members = data.members(row)
            # Stars, and blends without a result, are left out.
            placed[i, : len(members)] = np.nan_to_num(images[members])
        shown = render_of(stack, placed, np.asarray(stack.centers), psf_sigma, batch)[0]
        for i, row in enumerate(rows):
            out[row] = shown[i].sum(axis=0)
    return out


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params, result = snakemake.input, snakemake.params, snakemake.output
    main(
        [FieldRow.of(row) for row in params.rows],
        Path(given.blends),
        Path(given.posterior),
        (Path(given.galaxy), Path(given.dust)),
        [Path(path) for path in result.catalogs],
        [Path(path) for path in result.models],
        [Path(path) for path in result.samples],
        DustConfig(**params.dust),
        params.reference_band,
        params.batch,
        params.meta,
    )
