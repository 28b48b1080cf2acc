"""Closed-form profile fits of every blend of a chunk: the classical comparison."""

import logging
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from astropy.table import Table

from blendem.config import BlendsConfig, FrameConfig, MapConfig
from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import run_batches
from blendem.inference.map import MapSettings, fit_profiles
from blendem.io.blends import read_blends
from blendem.io.fetch import sha256_of
from blendem.io.priors import read_prior
from blendem.io.products import read_h5, write_h5, write_map
from blendem.io.table import FieldRow
from blendem.logs import configure_logging
from blendem.measure.light_curves import fluxes_table, stacked

LOG = logging.getLogger(__name__)


@eqx.filter_jit
def fit(blends, init, psf_sigma, settings):
    """Fit a batch of blends of one shape."""
    return jax.vmap(lambda b, a: fit_profiles(b, a, psf_sigma, settings)[0])(
        blends, init
    )


def main(
    rows: list[FieldRow],
    blends: Path,
    statistics: Path,
    prior: Path,
    maps: list[Path],
    timing: Path,
    config: MapConfig,
    frame: FrameConfig,
    batching: BlendsConfig,
    centroid_prior: float,
    meta: dict,
) -> None:
    """Fit stack after stack, then write field after field."""
    start = time.perf_counter()
    basis = read_prior(prior)[0].basis
    data = read_blends(blends)
    stats, _ = read_h5(statistics)
    settings = MapSettings(
        n_bands=len(basis.bands),
        pixel_scale=float(basis.pixel_scale),
        profile=config.profile,
        steps=config.steps,
        learning_rate=config.learning_rate,
        stamp=frame.stamp,
        centroid_prior=centroid_prior,
    )
    sigma = np.float32(basis.psf_sigma)
    fits = []
    for number, stack in enumerate(data.stacks):
        group = stats[f"stack_{number}"]
        init = Amplitudes(*(group[name] for name in Amplitudes._fields))
        fits.append(
            run_batches(
                lambda b, a: fit(b, a, sigma, settings), stack, batching.batch, init
            )
        )
    seconds = time.perf_counter() - start
    columns = _columns(
        data, fits, basis.bands, float(basis.pixel_scale), config.profile
    )
    meta = meta | {"PRIOR": sha256_of(prior)}
    planes = data.exposures(rows)
    for path in maps:
        name = path.stem
        chosen = data.sources["field"] == name
        table = Table({key: value[chosen] for key, value in columns.items()})
        light = stacked(
            [
                fluxes_table(
                    data.sources["id"][k], planes[name], *_light(data, fits, k)
                )
                for k in np.flatnonzero(chosen & (data.sources["type"] == "variable"))
                if data.place(k)[0] >= 0
            ]
        )
        unit = data.fields[name]["unit"]
        write_map(path, table, meta, flux_unit=unit, light_curves=light)
    LOG.info("%d blends: %.1f s", len(data.blends["field"]), seconds)
    write_h5(
        timing,
        {"converged": columns["converged"]},
        {"seconds": seconds, "programs": len(data.stacks)},
    )


def _light(data, fits, source):
    """Fluxes of a variable source in every plane, and in which it shines."""
    stack, index, slot = data.place(source)
    flux = fits[stack].plane_flux[index, slot].astype(float)
    return {"flux": flux}, np.asarray(data.stacks[stack].shines[index, slot])


def _columns(data, fits, bands, pixel_scale, profile) -> dict[str, np.ndarray]:
    """One row per source; NaN where its blend fits no bucket."""
    n = len(data.sources["id"])
    index_name = "bulge_fraction" if profile == "bulge_disk" else "n"
    out = {key: data.sources[key].copy() for key in ("id", "type", "x", "y")}
    out["blend"] = data.blends["number"][data.sources["blend"]]
    numbers = [f"flux_{b}" for b in bands]
    numbers += ["half_light_radius", "g1", "g2", index_name, "chi2_blend"]
    out |= {name: np.full(n, np.nan) for name in numbers}
    out["ndata_blend"], out["converged"] = np.zeros(n, int), np.zeros(n, bool)
    for k in range(n):
        b, slot = data.sources["blend"][k], data.sources["slot"][k]
        stack, i = data.blends["stack"][b], data.blends["index"][b]
        if stack < 0:
            continue
        f = fits[stack]
        for j, band in enumerate(bands):
            out[f"flux_{band}"][k] = f.flux[i, slot, j]
        out["half_light_radius"][k] = f.half_light_radius[i, slot] * pixel_scale
        out["g1"][k], out["g2"][k] = f.ellipticity[i, slot]
        out[index_name][k] = f.n[i, slot]
        observation = data.blend(b).observations[0]
        center = np.linalg.solve(
            observation.jacobian.astype(float), f.center[i, slot] - observation.offset
        )
        out["y"][k] = center[0] + data.blends["corner_y"][b]
        out["x"][k] = center[1] + data.blends["corner_x"][b]
        out["chi2_blend"][k], out["ndata_blend"][k] = f.chi2[i], f.n_data[i]
        out["converged"][k] = f.converged[i]
    return out


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        [FieldRow.of(row) for row in params.rows],
        Path(given.blends),
        Path(given.statistics),
        Path(given.basis),
        [Path(path) for path in snakemake.output.maps],
        Path(snakemake.output.timing),
        MapConfig(**params.map),
        FrameConfig(**params.frame),
        BlendsConfig(**params.blends),
        params.centroid_prior,
        params.meta,
    )
