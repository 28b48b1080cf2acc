"""Per-source results of any deblender on the blends of a run, in one form.

A method file is HDF5 with a `table` (one row per source: `field`, `id`, `flux_<b>`, optional
`flux_q16_<b>`, `flux_q84_<b>`; NaN where the method failed), `observed` `(source, band, side,
side)` with the image of every source alone as the instrument sees it, `corner` `(source, 2)` with
the pixel (y, x) of the field where it begins, and `blends` (one row per blend: `field`, `number`,
and seconds by phase).
"""

import resource
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.table import Table

from blendem.inference.map import PROFILES, _render, _Shapes
from blendem.io.blends import BlendSet, read_blends
from blendem.io.products import read_h5, read_models, read_table, write_h5
from blendem.renderer import Renderer

# The windows in which images are compared are wider than the model stamps by this [pixel]:
# they hold the PSF of compact sources and fit into what the catalogs store.
WINDOW_MARGIN = 8


@dataclass(frozen=True)
class MethodResult:
    """Results of one method.

    Attributes:
        table: `field`, `id`, `flux_<b>`, optional quantiles; NaN where it failed.
        observed: Image of each source alone `(source, band, side, side)`.
        corner: Pixel (y, x) of the field where each image begins, `(source, 2)`.
        seconds: Of the whole method per blend, by phase.
        peak_gib: Peak memory of the process [GiB], NaN where it was not measured.
    """

    table: pd.DataFrame
    observed: np.ndarray
    corner: np.ndarray
    seconds: dict[str, float]
    peak_gib: float = np.nan


@dataclass(frozen=True)
class Cutouts:
    """The blends of a run: which sources, where, which pixels.

    Attributes:
        sources: `field`, `id`, `x`, `y`, `type`, `blend` (row in `blends`), `slot`.
        blends: `field`, `number`, `corner_y`, `corner_x`, `height`, `width`, `stack`.
        chunks: The files' contents, and the row in `blends` where each begins.
        bands: Names of the bands.
    """

    sources: pd.DataFrame
    blends: pd.DataFrame
    chunks: list[tuple[int, BlendSet]]
    bands: tuple[str, ...]

    def blend(self, row: int):
        """The padded blend of a row of `blends`; None where it fits no bucket."""
        start, data = max(
            ((s, d) for s, d in self.chunks if s <= row), key=lambda c: c[0]
        )
        return data.blend(row - start)


def read_cutouts(run: Path) -> Cutouts:
    """All blends of a run, chunk after chunk."""
    paths = sorted((run / "blends").glob("*.h5"), key=lambda p: int(p.stem))
    if not paths:
        raise SystemExit(f"{run}/blends: no blends; run the workflow first")
    sources, blends, chunks, start = [], [], [], 0
    for path in paths:
        data = read_blends(path)
        s, b = pd.DataFrame(data.sources), pd.DataFrame(data.blends)
        sources.append(s.assign(blend=s["blend"] + start))
        blends.append(b)
        chunks.append((start, data))
        start += len(b)
    return Cutouts(
        pd.concat(sources, ignore_index=True),
        pd.concat(blends, ignore_index=True),
        chunks,
        tuple(chunks[0][1].attrs["bands"]),
    )


def read_truth(run: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, int]:
    """Truth of all fields: table with `field`, observed images, their corners, stamp side."""
    tables, observed, corner, stamp = [], [], [], 0
    for path in sorted((run / "truth").glob("*.h5")):
        arrays, _ = read_h5(path)
        tables.append(Table(arrays["table"]).to_pandas().assign(field=path.stem))
        observed.append(arrays["observed"])
        corner.append(arrays["corner"])
        stamp = arrays["model"].shape[-1]
    if not tables:
        raise SystemExit(f"{run}/truth: no truth; only simulated runs can be compared")
    return (
        pd.concat(tables, ignore_index=True),
        np.concatenate(observed),
        np.concatenate(corner),
        stamp,
    )


def window_corner(position: np.ndarray, side: int) -> np.ndarray:
    """First pixel (y, x) of the window of `side` pixels around each position (y, x)."""
    return np.round(position).astype(int) - side // 2


def cut(
    image: np.ndarray, corner: np.ndarray, low: np.ndarray, side: int
) -> np.ndarray:
    """Window at `low` of an image that begins at `corner`, both (y, x); zero outside it."""
    out = np.zeros((*image.shape[:-2], side, side), np.float32)
    shift = np.asarray(low) - np.asarray(corner)
    shape = np.array(image.shape[-2:])
    start, stop = np.maximum(shift, 0), np.minimum(shift + side, shape)
    if np.all(stop > start):
        to = tuple(
            slice(a, b) for a, b in zip(start - shift, stop - shift, strict=True)
        )
        take = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        out[(..., *to)] = image[(..., *take)]
    return out


def write_method(
    path: Path, result: MethodResult, blends: pd.DataFrame, attrs: dict
) -> None:
    """Write a method file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_h5(
        path,
        {
            "table": _columns(result.table),
            "observed": result.observed,
            "corner": result.corner,
            "blends": _columns(blends),
        },
        attrs | {"seconds": result.seconds, "peak_gib": float(result.peak_gib)},
    )


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns of a table as HDF5 takes them."""
    columns = {name: table[name].to_numpy() for name in table}
    return {k: v.astype(str) if v.dtype == object else v for k, v in columns.items()}


def read_method(path: Path) -> MethodResult:
    """Read a method file."""
    arrays, attrs = read_h5(path)
    return MethodResult(
        pd.DataFrame(arrays["table"]),
        arrays["observed"],
        arrays["corner"],
        dict(attrs["seconds"]),
        float(attrs.get("peak_gib", np.nan)),
    )


def read_parts(path: Path) -> MethodResult:
    """Method files of different blends as one; `path` is a pattern such as `peers/scarlet2_*.h5`.

    Raises:
        SystemExit: If no file has such a name.
    """
    files = sorted(path.parent.glob(path.name))
    if not files:
        raise SystemExit(f"{path}: no such files")
    parts = [read_method(file) for file in files]
    n = [len(read_h5(file)[0]["blends"]["number"]) for file in files]
    return MethodResult(
        pd.concat([part.table for part in parts], ignore_index=True),
        np.concatenate([part.observed for part in parts]),
        np.concatenate([part.corner for part in parts]),
        {
            phase: float(np.average([p.seconds[phase] for p in parts], weights=n))
            for phase in parts[0].seconds
        },
        float(max(part.peak_gib for part in parts)),
    )


def peak_gib() -> float:
    """Peak memory of this process so far [GiB]."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**30 if sys.platform == "darwin" else 2**20)


def read_run(run: Path) -> MethodResult:
    """Posterior means and intervals of a run of the workflow: catalogs and models."""
    tables, observed, corner = [], [], []
    for path in sorted((run / "catalog").glob("*.fits")):
        tables.append(read_table(path)[0].to_pandas().assign(field=path.stem))
        images = read_models(run / "models" / path.name)
        observed.append(images["OBS_MEAN"])
        ids = images["IDS"]
        corner.append(np.stack([ids["corner_y"], ids["corner_x"]], axis=-1))
    if not tables:
        raise SystemExit(f"{run}/catalog: no catalogs; run the workflow first")
    n_blends = len(read_cutouts(run).blends)
    return MethodResult(
        pd.concat(tables, ignore_index=True),
        np.concatenate(_one_size(observed)),
        np.concatenate(corner).astype(int),
        {
            name: _rule_seconds(run, name) / n_blends
            for name in ("compute_statistics", "sample_posterior")
        },
        float(
            np.fmax(
                *(
                    _rule_peak(run, n)
                    for n in ("compute_statistics", "sample_posterior")
                )
            )
        ),
    )


def _one_size(observed: list[np.ndarray]) -> list[np.ndarray]:
    """Windows of several fields, dark at the far edges so that all are as wide as the widest."""
    side = max(images.shape[-1] for images in observed)
    wider = [side - images.shape[-1] for images in observed]
    return [
        np.pad(images, [(0, 0), (0, 0), (0, more), (0, more)])
        for images, more in zip(observed, wider, strict=True)
    ]


def _rule_seconds(run: Path, rule: str) -> float:
    """Wall time of a rule over all chunks, start of Python and compilation included [s]."""
    files = sorted((run / "benchmarks" / rule).glob("*.tsv"))
    if not files:
        return np.nan
    return float(sum(pd.read_csv(f, sep="\t")["s"].iloc[-1] for f in files))


def _rule_peak(run: Path, rule: str) -> float:
    """Largest peak memory of a rule over all chunks [GiB]."""
    files = sorted((run / "benchmarks" / rule).glob("*.tsv"))
    peaks = [pd.read_csv(f, sep="\t")["max_rss"].iloc[-1] for f in files]
    # "-" where the job ended before its memory was looked at.
    numbers = pd.to_numeric(pd.Series(peaks, dtype=object), errors="coerce")
    return float(numbers.max()) / 1024


def read_map(run: Path, profile: str = "sersic", stamp: int = 49) -> MethodResult:
    """Closed-form fits of a run, every source rendered alone on its cut-out.

    Args:
        run: Folder of the run.
        profile: Of the fits, as `map.profile`.
        stamp: Side of the model stamps [pixel]; sets the padding of the transform.
    """
    cutouts = read_cutouts(run)
    index = "bulge_fraction" if profile == "bulge_disk" else "n"
    names = [f"flux_{b}" for b in cutouts.bands]
    fitted = pd.concat(
        [
            read_table(p)[0].to_pandas().assign(field=p.stem)
            for p in sorted((run / "map").glob("*.fits"))
        ],
        ignore_index=True,
    )
    if index not in fitted or profile not in PROFILES:
        raise SystemExit(
            f"{run}/map: no column {index!r}: `profile` is not {profile!r}"
        )
    keyed = fitted.set_index(["field", "id"])
    rows = cutouts.sources
    fields = {k: v for _, chunk in cutouts.chunks for k, v in chunk.fields.items()}
    side = stamp + WINDOW_MARGIN
    low = window_corner(rows[["y", "x"]].to_numpy(), side)
    observed = np.full((len(rows), len(names), side, side), np.nan, np.float32)
    table = keyed.loc[list(zip(rows["field"], rows["id"], strict=True)), names]
    for row, members in rows.groupby("blend"):
        blend = cutouts.blend(row)
        if blend is None:
            continue
        begin = cutouts.blends.loc[row, ["corner_y", "corner_x"]].to_numpy(int)
        scale = float(fields[members["field"].iloc[0]]["pixel_scale"])
        for k, source in members.iterrows():
            f = keyed.loc[(source["field"], source["id"])]
            first = blend.observations[0]
            if not first.same_grid:
                raise SystemExit(
                    f"{run}: only runs on the grid of the image are compared"
                )
            shapes = _Shapes(
                jnp.float32([max(f["half_light_radius"], 1e-3) / scale]),
                jnp.float32([[f["g1"], f["g2"]]]),
                jnp.float32([f[index]]),
            )
            image = _profile_image(
                first,
                jnp.float32([f[names].to_numpy(float)]),
                shapes,
                jnp.float32([[f["y"] - begin[0], f["x"] - begin[1]]]) + first.offset,
                jnp.asarray([source["type"] == "star"]),
                stamp,
                profile,
            )
            observed[k] = cut(np.asarray(image), begin, low[k], side)
    seconds = 0.0
    for path in (run / "map").glob("*.h5"):
        seconds += float(read_h5(path)[1]["seconds"])
    return MethodResult(
        table.reset_index(),
        observed,
        low,
        {"fit": seconds / len(cutouts.blends)},
        _rule_peak(run, "fit_map"),
    )


@partial(jax.jit, static_argnames=("stamp", "profile"))
def _profile_image(observation, flux, shapes, center, is_star, stamp, profile):
    """A source alone on the pixels of an observation."""
    # The model PSF is for stamps: profiles are convolved with that of the observation.
    renderer = Renderer.of(observation, stamp, jnp.float32(0.7))
    return _render(renderer, flux, shapes, center, is_star, profile)


def same_pixels(run: Path, other: Path) -> None:
    """Stop unless two runs have the same images.

    Raises:
        SystemExit: Names the field that differs.
    """
    for path in sorted((run / "fields").glob("*.fits")):
        second = other / "fields" / path.name
        if not second.is_file():
            raise SystemExit(f"{second}: no such field, {run} has it")
        with fits.open(path) as a, fits.open(second) as b:
            if not np.array_equal(a["SCI"].data, b["SCI"].data):
                raise SystemExit(
                    f"{second} differs from {path}: give both runs the same seed and"
                    " `simulate` section"
                )
