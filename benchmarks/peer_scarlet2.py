"""scarlet2's maximum a posteriori on the blends of a run, by its documented recipe.

    .venv-peers/bin/python benchmarks/peer_scarlet2.py results/<run> --max-blends 100

Blends are those with a source of i-band blendedness above 0.2 (`--min-blendedness`; -1: all), in an
order that `--seed` sets, from `--skip` on. Setting:

- Data: the pixels, weights and PSFs that blendem gets, and `--margin` pixels of sky around them,
  so that the boxes in which scarlet2 measures moments need not leave the image.
- Sources: at the catalog positions, each from `init.from_gaussian_moments`; where these fail, a
  compact source, as its documentation advises. Stars are point sources at free positions.
- Parameters: spectra positive, steps 5 % of their norm; morphologies within the unit interval,
  steps 0.1 % of their norm; `Scene.fit` with `--steps` and `--e-rel`. There is no prior beyond
  these constraints.
- Flux: the sum of a source's model image, as `scarlet2.measure.flux`; `flux_stamp_<b>` is what of
  it lies in the stamp in which blendem and the truth measure.

Writes `results/<run>/peers/scarlet2.h5` (see method_results.py). A failed blend has NaN.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scarlet2
from astropy.io import fits
from method_results import (
    WINDOW_MARGIN,
    Cutouts,
    MethodResult,
    cut,
    peak_gib,
    read_cutouts,
    read_truth,
    window_corner,
    write_method,
)
from numpyro.distributions import constraints

TINY = 1e-6  # inside the constraints
BLENDED = 0.2
NONE_LEFT = 3  # exit status: `--skip` is beyond the last blend
# Every fit compiles anew and the programs stay in memory, 13 MB each.
CLEAR_EVERY = 20
# Blends whose compilation is timed, by a extra fit of one step.
TIMED = 8


class Clock:
    """Wall and processor time since it was made; other work on the machine disturbs the first."""

    def __init__(self):
        self.start = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        """Both [s], as `name` and `cpu_<name>`."""
        wall, cpu = self.start
        return {
            name: time.perf_counter() - wall,
            f"cpu_{name}": time.process_time() - cpu,
        }


def choose_blends(
    cutouts: Cutouts,
    truth: pd.DataFrame | None,
    band: str,
    n: int,
    seed: int,
    *,
    least: float = BLENDED,
    skip: int = 0,
) -> np.ndarray:
    """Rows of `n` blends with a source of blendedness above `least`, in random order.

    Args:
        cutouts, truth: Of the run; without a truth all blends are taken.
        band: Of the blendedness.
        n: Number of blends.
        seed: Of the order.
        least: Below 0: all blends.
        skip: How many of them come before the first.
    """
    if truth is None or least < 0:
        rows = np.arange(len(cutouts.blends))
    else:
        keys = ["field", "id"]
        joined = cutouts.sources.merge(truth[[*keys, f"blendedness_{band}"]], on=keys)
        rows = np.unique(joined.loc[joined[f"blendedness_{band}"] > least, "blend"])
    rows = rows[cutouts.blends["stack"].to_numpy()[rows] >= 0]
    return np.random.default_rng(seed).permutation(rows)[skip : skip + n]


def wide_cutout(
    cutouts: Cutouts, row: int, image: np.ndarray, variance: np.ndarray, margin: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels and weights of a blend with sky around it, and the corner (y, x).

    Light of other blends is masked: their cut-outs, where these are outside of its own.
    """
    b = cutouts.blends.loc[row]
    first = cutouts.blend(row).observations[0]
    own = np.s_[:, : b["height"], : b["width"]]
    y, x = b["corner_y"], b["corner_x"]
    weight = np.where(np.isfinite(variance), 1 / variance, 0.0)
    others = cutouts.blends[cutouts.blends["field"] == b["field"]].drop(index=row)
    for o in others.itertuples():
        box = np.s_[
            :,
            o.corner_y : o.corner_y + o.height,
            o.corner_x : o.corner_x + o.width,
        ]
        weight[box] = 0.0
    weight[:, y : y + b["height"], x : x + b["width"]] = np.asarray(first.weight)[own]
    low = np.maximum([y - margin, x - margin], 0)
    high = np.minimum(
        [y + b["height"] + margin, x + b["width"] + margin], image.shape[1:]
    )
    wide = np.s_[:, low[0] : high[0], low[1] : high[1]]
    return np.where(weight[wide] > 0, image[wide], 0.0), weight[wide], low


def build_scene(observation, frame, centers, is_star):
    """Sources and free parameters; returns the scene and the number of compact sources."""
    compact = 0
    with scarlet2.Scene(frame) as scene:
        for at, star in zip(jnp.asarray(centers), is_star, strict=True):
            if star:
                spectrum = scarlet2.init.pixel_spectrum(
                    observation, at, correct_psf=True
                )
                scarlet2.PointSource(at, jnp.maximum(spectrum, TINY))
                continue
            try:
                spectrum, shape = scarlet2.init.from_gaussian_moments(observation, at)
                usable = bool(np.isfinite(spectrum).all() and np.isfinite(shape).all())
            except ValueError:
                usable = False
            if not usable:
                compact += 1
                spectrum = scarlet2.init.pixel_spectrum(observation, at)
                shape = scarlet2.init.compact_morphology()
            scarlet2.Source(
                at, jnp.maximum(spectrum, TINY), jnp.clip(shape, TINY, 1 - TINY)
            )
    with scarlet2.Parameters(scene):
        for i, (source, star) in enumerate(zip(scene.sources, is_star, strict=True)):
            scarlet2.Parameter(
                source.spectrum,
                name=f"spectrum:{i}",
                constraint=constraints.positive,
                stepsize=partial(scarlet2.relative_step, factor=0.05),
            )
            if star:
                scarlet2.Parameter(source.center, name=f"center:{i}", stepsize=0.1)
            else:
                scarlet2.Parameter(
                    source.morphology,
                    name=f"morphology:{i}",
                    constraint=constraints.unit_interval,
                    stepsize=partial(scarlet2.relative_step, factor=1e-3),
                )
    return scene, compact


def fit_blend(
    image, weight, psf, bands, centers, is_star, steps: int, e_rel: float, timed: bool
):
    """Fit one blend.

    Returns:
        The fitted scene, its observation, and a dictionary: wall time `prepare`, `call`
        (compilation and fit), `compile` (NaN if not `timed`) [s], the same with `cpu_`,
        `compact` (sources without moments), `chi2`, `n_data`.
    """
    clock = Clock()
    observation = scarlet2.Observation(
        jnp.asarray(image, jnp.float32),
        weights=jnp.asarray(weight, jnp.float32),
        psf=jnp.asarray(psf),
        channels=list(bands),
    )
    frame = scarlet2.Frame.from_observations(observation)
    observation.match(frame)
    scene, compact = build_scene(observation, frame, centers, is_star)
    prepared = clock.read("prepare")

    def fit(n, name):
        clock = Clock()
        fitted = scene.fit(observation, max_iter=n, e_rel=e_rel, progress_bar=False)
        jax.block_until_ready([x for x in jax.tree.leaves(fitted) if eqx.is_array(x)])
        return fitted, clock.read(name)

    fitted, called = fit(steps, "call")
    # It compiles again at every call: one step tells how long that takes.
    compiled = {"compile": np.nan, "cpu_compile": np.nan}
    if timed:
        _, compiled = fit(1, "compile")
    residual = np.asarray(observation.render(fitted())) - image
    return (
        fitted,
        observation,
        {
            **prepared,
            **called,
            **compiled,
            "compact": compact,
            "chi2": float(np.sum(weight * residual**2)),
            "n_data": int(np.sum(weight > 0)),
        },
    )


def main(run: Path, options: argparse.Namespace) -> None:
    """Fit the chosen blends and write the file."""
    cutouts = read_cutouts(run)
    if (run / "truth").is_dir():
        truth, _, _, stamp = read_truth(run)
    else:
        truth, stamp = None, options.stamp
    bands, side = cutouts.bands, stamp + WINDOW_MARGIN
    rows = choose_blends(
        cutouts,
        truth,
        options.band,
        options.max_blends,
        options.seed,
        least=options.min_blendedness,
        skip=options.skip,
    )
    if not len(rows):
        print(f"{run}: no blends from number {options.skip} on")
        sys.exit(NONE_LEFT)
    print(f"{len(rows)} blends, scarlet2 {scarlet2.__version__}, {jax.devices()[0]}")
    tables, observed, corners, notes = [], [], [], []
    name = None
    for count, row in enumerate(rows):
        b = cutouts.blends.loc[row]
        if b["field"] != name:
            name = b["field"]
            with fits.open(run / "fields" / f"{name}.fits") as file:
                field = [np.array(file[hdu].data, float) for hdu in ("SCI", "VAR")]
        blend = cutouts.blend(row)
        if len(blend.observations) > 1:
            raise SystemExit(f"{run}: only fields with one observation are compared")
        members = cutouts.sources[cutouts.sources["blend"] == row].sort_values("slot")
        image, weight, begin = wide_cutout(cutouts, row, *field, options.margin)
        position = members[["y", "x"]].to_numpy()
        low = window_corner(position, side)
        n = len(members)
        values = members[["field", "id"]].reset_index(drop=True)
        flux, inside = np.full((2, n, len(bands)), np.nan)
        images = np.full((n, len(bands), side, side), np.nan, np.float32)
        note = {"field": name, "number": b["number"], "n_sources": n, "error": ""}
        began = time.perf_counter()
        try:
            fitted, observation, more = fit_blend(
                image,
                weight,
                np.asarray(blend.observations[0].psf),
                bands,
                position - begin,
                (members["type"] == "star").to_numpy(),
                options.steps,
                options.e_rel,
                timed=count < TIMED,
            )
            note |= more
            for k, source in enumerate(fitted.sources):
                model = np.asarray(source())
                flux[k] = model.sum((1, 2))
                at = np.array(source.bbox.spatial.start)
                around = window_corner(position[k] - begin, stamp)
                inside[k] = cut(model, at, around, stamp).sum((1, 2))
                seen = np.asarray(observation.render(fitted.evaluate_source(source)))
                images[k] = cut(seen, begin, low[k], side)
        except (ValueError, AssertionError, RuntimeError, IndexError) as error:
            note |= {"error": f"{type(error).__name__}: {error}"[:200]}
        failed = ~np.isfinite(flux).all(axis=1)
        flux[failed], inside[failed], images[failed] = np.nan, np.nan, np.nan
        for i, band in enumerate(bands):
            values[f"flux_{band}"] = flux[:, i]
            values[f"flux_stamp_{band}"] = inside[:, i]
        note |= {"failed": int(failed.sum()), "total": time.perf_counter() - began}
        tables.append(values)
        observed.append(images)
        corners.append(low)
        notes.append(note)
        print(
            f"{count + 1}/{len(rows)} {name}/{b['number']}: {n} sources,"
            f" {note['total']:.1f} s, chi2/N"
            f" {note.get('chi2', np.nan) / note.get('n_data', np.nan):.2f}"
            f" {note['error']}",
            flush=True,
        )
        if count % CLEAR_EVERY == CLEAR_EVERY - 1:
            jax.clear_caches()
    blends = pd.DataFrame(notes)
    timed = blends.head(TIMED)
    seconds = {}
    for clock in ("", "cpu_"):
        fitting = timed[f"{clock}call"] - timed[f"{clock}compile"]
        seconds |= {
            f"{clock}prepare": float(blends[f"{clock}prepare"].mean()),
            f"{clock}compile": float(timed[f"{clock}compile"].mean()),
            f"{clock}fit": float(fitting.mean()),
        }
    write_method(
        run / "peers" / options.output,
        MethodResult(
            pd.concat(tables, ignore_index=True),
            np.concatenate(observed),
            np.concatenate(corners),
            seconds,
            peak_gib(),
        ),
        blends,
        {
            "method": f"scarlet2 {scarlet2.__version__} MAP",
            "command": " ".join(sys.argv),
            "device": str(jax.devices()[0]),
            "settings": {k: v for k, v in vars(options).items() if k != "run"},
        },
    )
    print(
        f"{int(blends['failed'].sum())} of {int(blends['n_sources'].sum())} sources failed,"
        f" {int(blends['compact'].sum())} had no moments; per blend: "
        + ", ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, help="folder results/<run> of a simulated run"
    )
    parser.add_argument("--max-blends", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0, help="blends before them")
    parser.add_argument("--min-blendedness", type=float, default=BLENDED)
    parser.add_argument("--stamp", type=int, default=49, help="of runs without truth")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--e-rel", type=float, default=1e-4)
    parser.add_argument("--margin", type=int, default=16, help="sky around [pixel]")
    parser.add_argument("--band", default="i", help="band of the blendedness")
    parser.add_argument("--seed", type=int, default=1, help="chooses the blends")
    parser.add_argument("--output", default="scarlet2.h5", help="file in peers/")
    arguments = parser.parse_args()
    # Cached programs would make its compilations look free.
    jax.config.update("jax_enable_compilation_cache", False)
    scarlet2.set_validation(False)
    main(arguments.run, arguments)
