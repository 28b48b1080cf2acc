"""Maximum a posteriori with the score prior of a run, on all of its blends.

    .venv/bin/python benchmarks/score_map_of_run.py results/<run> --prior results/<run>/prior/00.eqx

Statistics and cut-outs are those of the run, so that only the estimate differs from the posterior
mean. Nuisances (star fluxes, shifts, sky) take their conditional mean given the galaxies. Writes
`results/<run>/peers/score_map.h5` (see method_results.py); fits that did not converge are counted
in its `blends` and kept.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from method_results import (
    WINDOW_MARGIN,
    MethodResult,
    cut,
    peak_gib,
    read_cutouts,
    window_corner,
    write_method,
)

from blendem.config import InferConfig
from blendem.inference.batch import render_of
from blendem.inference.likelihood import complete_draws, galaxy_likelihood
from blendem.inference.score_map import ScoreMapSettings, fit_score_map
from blendem.inference.statistics import STAR_SPREAD
from blendem.io.blends import BlendSet
from blendem.io.priors import read_prior
from blendem.io.products import read_h5
from blendem.io.statistics import unstack
from blendem.measure.sources import point_image

BATCH = 4


def fit_chunk(
    data: BlendSet,
    arrays: dict,
    prior,
    infer: InferConfig,
    settings: ScoreMapSettings,
    chosen: np.ndarray,
) -> tuple[np.ndarray, list, list, list[dict]]:
    """Fit the chosen rows of the blends of a chunk.

    Returns:
        Model images `(source, band, stamp, stamp)`, then per stack of blends the images as
        observed and the rows of their sources; and one row of notes per blend.
    """
    basis = prior.basis
    d, (n_bands, stamp) = len(prior.mean), basis.mean.shape[:2]
    modes = np.asarray(basis.modes).reshape(d, -1)
    point = point_image(stamp, float(basis.psf_sigma))
    everything = enumerate(unstack(arrays, data))
    given = {r: s for r, s in everything if s is not None and chosen[r]}
    # Blends of stars alone have nothing to fit.
    fitted = [r for r, s in given.items() if not np.all(s.is_star)]
    found = fit_score_map(
        prior,
        [galaxy_likelihood(given[r], prior) for r in fitted],
        settings,
        batch=BATCH,
    )
    fits = dict(zip(fitted, found, strict=True))
    sources = data.sources
    images = np.full((len(sources["id"]), n_bands, stamp, stamp), np.nan, np.float32)
    center = np.full((len(images), 2), np.nan)
    notes = [
        {"field": f, "number": n, "converged": False, "gradient_norm": np.nan}
        for f, n in zip(data.blends["field"], data.blends["number"], strict=True)
    ]
    for row, s in given.items():
        found = fits.get(row)
        if found is not None:
            notes[row]["gradient_norm"] = found.gradient_norm
        notes[row]["converged"] = found is None or found.converged
        e = np.zeros((0, prior.n_latent)) if found is None else found.e
        w = complete_draws(s, prior, e[None], None)[0]
        members = data.members(row)
        group = arrays[f"stack_{data.blends['stack'][row]}"]
        index, k = data.blends["index"][row], len(members)
        center[members] = group["centers"][index][:k]
        rest = w[k * d :]
        if infer.centroid_sigma > 0:
            center[members] += infer.centroid_sigma * rest[: 2 * k].reshape(k, 2)
        for j, m in enumerate(members):
            scale, z = float(group["scale"][index, j]), w[j * d : (j + 1) * d]
            if s.is_star[j]:
                flux = scale * (1 + STAR_SPREAD * z[:n_bands])
                images[m] = flux[:, None, None] * point
            else:
                light = np.asarray(basis.mean).ravel() + z @ modes
                images[m] = (scale * light).reshape(images[m].shape)
    observed, owners = [], []
    for number, stack in enumerate(data.stacks):
        padded = stack.present.shape[1]
        rows = np.flatnonzero(data.blends["stack"] == number)
        rows = rows[np.argsort(data.blends["index"][rows])]
        placed = np.zeros((len(rows), padded, n_bands, stamp, stamp), np.float32)
        centers, owner = np.asarray(stack.centers).copy(), []
        for i, row in enumerate(rows):
            members = data.members(row)
            placed[i, : len(members)] = np.nan_to_num(images[members])
            known = np.isfinite(center[members])
            centers[i, : len(members)][known] = center[members][known]
            owner.append(members)
        observed.append(
            render_of(stack, placed, centers, float(basis.psf_sigma), BATCH)[0]
        )
        owners.append(owner)
    return images, observed, owners, notes


def main(options: argparse.Namespace) -> None:
    """Fit all chunks and write the file."""
    run, start = options.run, time.perf_counter()
    prior, _ = read_prior(options.prior)
    settings = ScoreMapSettings(sigma_0=options.sigma_0)
    infer = InferConfig(centroid_sigma=options.centroid_sigma)
    cutouts = read_cutouts(run)
    bands = tuple(prior.basis.bands)
    side = prior.basis.mean.shape[-1] + WINDOW_MARGIN
    only = None
    if options.only is not None:
        blends = pd.DataFrame(read_h5(options.only)[0]["blends"])
        only = pd.MultiIndex.from_frame(blends[["field", "number"]])
    tables, windows, corners, notes = [], [], [], []
    paths = sorted((run / "statistics").glob("*.h5"), key=lambda p: int(p.stem))
    for (_, data), path in zip(cutouts.chunks, paths, strict=True):
        rows = pd.MultiIndex.from_arrays([data.blends["field"], data.blends["number"]])
        chosen = np.ones(len(rows), bool) if only is None else rows.isin(only)
        images, observed, owners, more = fit_chunk(
            data, read_h5(path)[0], prior, infer, settings, chosen
        )
        notes += [note for note, used in zip(more, chosen, strict=True) if used]
        s = data.sources
        kept = chosen[s["blend"]]
        table = pd.DataFrame({"field": s["field"], "id": s["id"]})
        flux = images.sum(axis=(2, 3), dtype=float)
        for i, b in enumerate(bands):
            table[f"flux_{b}"] = flux[:, i]
        low = window_corner(np.stack([s["y"], s["x"]], axis=-1), side)
        out = np.full((len(table), len(bands), side, side), np.nan, np.float32)
        for seen, owner in zip(observed, owners, strict=True):
            for i, members in enumerate(owner):
                for j, m in enumerate(members):
                    row = s["blend"][m]
                    begin = (data.blends["corner_y"][row], data.blends["corner_x"][row])
                    out[m] = cut(seen[i, j], begin, low[m], side)
        out[~np.isfinite(flux).all(axis=1)] = np.nan
        tables.append(table[kept])
        windows.append(out[kept])
        corners.append(low[kept])
    blends = pd.DataFrame(notes)
    seconds = (time.perf_counter() - start) / len(blends)
    write_method(
        run / "peers" / options.output,
        MethodResult(
            pd.concat(tables, ignore_index=True),
            np.concatenate(windows),
            np.concatenate(corners),
            {"fit": seconds},
            peak_gib(),
        ),
        blends,
        {
            "method": f"score MAP, sigma_0 = {settings.sigma_0:g}",
            "command": " ".join(sys.argv),
        },
    )
    print(
        f"{len(blends)} blends, {int((~blends['converged']).sum())} not converged,"
        f" {seconds:.2f} s per blend"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with statistics")
    parser.add_argument("--prior", type=Path, required=True, help="file .eqx")
    parser.add_argument("--sigma-0", type=float, default=ScoreMapSettings().sigma_0)
    parser.add_argument(
        "--centroid-sigma",
        type=float,
        default=InferConfig().centroid_sigma,
        help="as `infer.centroid_sigma` of the run",
    )
    parser.add_argument(
        "--only", type=Path, help="method file: fit the blends that it has"
    )
    parser.add_argument("--output", default="score_map.h5", help="file in peers/")
    main(parser.parse_args())
