"""Cut the fields of one chunk into padded blends."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.blend import Bucket, stack
from blendem.config import BlendsConfig, DetectConfig, FrameConfig, NoiseConfig
from blendem.io.blends import BlendSet, signature, write_blends
from blendem.io.catalogs import epochs_off
from blendem.io.fields import ObservedField, read_observation
from blendem.io.priors import check_prior, read_prior
from blendem.io.table import FieldRow, InputError, epochs_of
from blendem.logs import configure_logging
from blendem.prior.gaussian import Basis
from blendem.survey.detect import detect_catalog, detection_image
from blendem.survey.extract import (
    SAME_PIXEL,
    Plane,
    SourceFlag,
    estimate_noise,
    extract_blends,
    overlaps,
    pixel_scale_of,
    psf_widths,
)
from blendem.survey.footprints import Footprints
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.psf_model import at_pixels, nyquist_amplitude

LOG = logging.getLogger(__name__)
# Transform of a PSF image at its Nyquist frequency above which it is refused. In the scene of
# tests/survey/test_oversampled.py 0.08 (pixels of 0.04 arcsec) adds 0.01 to chi2 per pixel and
# 0.28 (0.05 arcsec) adds 0.8, with peaks of 170 and 230 sigma.
ALIASED = 0.2
SOURCE_COLUMNS = {"id": int, "x": float, "y": float, "ra": float, "dec": float}
SOURCE_COLUMNS |= {"field": str, "type": str, "blend": int, "slot": int, "flags": int}
BLEND_COLUMNS = {"field": str} | dict.fromkeys(
    ("number", "stack", "index", "corner_y", "corner_x", "height", "width"), int
)
BLEND_COLUMNS |= {"n_sources": int, "flags": int}


def main(
    rows: list[FieldRow],
    prior: Path,
    output: Path,
    config: BlendsConfig,
    detection: DetectConfig,
    frame: FrameConfig,
    noise: NoiseConfig,
) -> None:
    """Read every field, find its sources where it has no catalog, cut and stack."""
    model, _ = read_prior(prior)
    basis = model.basis
    buckets = [Bucket(b.sources, b.size) for b in config.buckets]
    names = list(dict.fromkeys(row.field for row in rows))
    sources, blends, stacks, fields = [], [], {}, {}
    by_field = {
        name: [read_observation(row) for row in rows if row.field == name]
        for name in names
    }
    # One size of PSF images of an instrument, since each would need a compilation of its own.
    psf_side = {}
    for o in itertools.chain.from_iterable(by_field.values()):
        kind = (o.instrument, o.oversampling)
        psf_side[kind] = max(o.psf.shape[-1], psf_side.get(kind, 0))
    for name, observed in by_field.items():
        first = observed[0]
        planes = []
        for o in observed:
            scale = (
                _scale(o, frame) if not planes else None
            )  # the first sets the model grid
            check_prior(
                prior,
                model,
                where=f"{o.path} (field {name})",
                bands=o.bands,
                stamp=frame.stamp,
                pixel_scale=frame.pixel_scale or scale,
            )
            side = psf_side[o.instrument, o.oversampling]
            planes.append(_plane(o, basis, side, frame, first.magzero))
            if not overlaps(planes[0], planes[-1]):
                raise InputError(
                    f"{o.path} (field {name}): its WCS puts it off {first.path}, the first"
                    " observation of the field; correct the WCS or give it a field of its own"
                )
            _check_sharpness(o, planes[-1], basis)
            planes[-1] = _with_noise(planes[-1], o, noise, detection.group_threshold)
        catalog = first.catalog
        if catalog is None:
            catalog = _detect(first, detection)
        positions = np.stack([catalog["y"], catalog["x"]], axis=-1).astype(float)
        stars = np.asarray(catalog["type"]) != "galaxy"
        here = [row for row in rows if row.field == name]
        shines = _shines(catalog, here, observed, len(basis.modes))
        cuts = extract_blends(
            planes,
            positions,
            stars,
            buckets,
            group=config.group,
            threshold=detection.group_threshold,
            max_sources=detection.max_sources,
            margin=config.margin,
            pixel_scale=frame.pixel_scale,
            stamp=frame.stamp,
            magnify=config.magnify,
            shines=shines,
            footprints=_footprints(first),
        )
        for number, cut in enumerate(cuts):
            place, index = -1, -1
            if cut.blend is not None:
                group = stacks.setdefault(signature(cut.blend), [])
                place, index = list(stacks).index(signature(cut.blend)), len(group)
                group.append(cut.blend)
            for slot, row in enumerate(cut.members):
                source = {
                    key: catalog[key][row] for key in ("id", "x", "y", "ra", "dec")
                }
                y, x = np.round(positions[row]).astype(int)
                height, width = first.image.shape[1:]
                y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                dark = np.isinf(first.variance[:, y, x]).all()
                sources.append(
                    source
                    | {
                        "field": name,
                        "type": str(catalog["type"][row]),
                        "blend": len(blends),
                        "slot": slot,
                        "flags": int(cut.flags) | (SourceFlag.NO_DATA if dark else 0),
                    }
                )
            blends.append(
                {
                    "field": name,
                    "number": number,
                    "stack": place,
                    "index": index,
                    "corner_y": cut.corner[0],
                    "corner_x": cut.corner[1],
                    "height": cut.shape[0],
                    "width": cut.shape[1],
                    "n_sources": len(cut.members),
                    "flags": int(cut.flags),
                }
            )
        fields[name] = {
            "magzero": first.magzero,
            "unit": first.unit,
            "instrument": first.instrument,
            "pixel_scale": planes[0].pixel_scale,
        }
        LOG.info("%s: %d sources in %d blends", name, len(catalog), len(cuts))
    write_blends(
        output,
        BlendSet(
            [stack(group, len(group)) for group in stacks.values()],
            _columns(sources, SOURCE_COLUMNS),
            _columns(blends, BLEND_COLUMNS),
            fields,
            {"bands": list(basis.bands)},
        ),
    )


def _shines(
    catalog: Table, rows: list[FieldRow], observed: list[ObservedField], n_modes: int
) -> np.ndarray | None:
    """Planes of all observations in which each variable source may shine, `(source, plane)`."""
    variable = np.asarray(catalog["type"]) == "variable"
    if not variable.any():
        return None
    of_plane = [
        e
        for e, o in zip(epochs_of(rows), observed, strict=True)
        for _ in range(len(o.bands))
    ]
    if len(of_plane) > n_modes:
        raise InputError(
            f"field {rows[0].field}: {len(of_plane)} images of all epochs and bands, but variable"
            f" sources have as many unknowns as the prior has modes, {n_modes}: raise prior.modes"
        )
    dark = [[e in off for e in of_plane] for off in epochs_off(catalog)]
    return variable[:, None] & ~np.array(dark)


def _footprints(observed: ObservedField) -> Footprints | None:
    """Groups that a tile of a field comes with."""
    if observed.segmentation is None:
        return None
    groups = (np.asarray(observed.catalog[name]) for name in ("group", "split"))
    labels, split = (values.astype(int) for values in groups)
    return Footprints(labels, observed.segmentation.astype(np.int32), split > 0)


def _columns(rows: list[dict], kinds: dict[str, type]) -> dict[str, np.ndarray]:
    """Rows as columns, which have their kinds where there is no row."""
    return {
        key: np.array([row[key] for row in rows], dtype=kind)
        for key, kind in kinds.items()
    }


def _plane(
    observed: ObservedField,
    basis: Basis,
    psf_side: int,
    frame: FrameConfig,
    magzero: float,
) -> Plane:
    """An observation in the units of the first one of its field."""
    gain = np.float32(10 ** (0.4 * (magzero - observed.magzero)))
    if observed.psf_model is None:
        pad = (psf_side - observed.psf.shape[-1]) // 2
        psf = np.pad(observed.psf, [(0, 0), (pad, pad), (pad, pad)])
    else:
        psf = replace(observed.psf_model, size=psf_side)
    return Plane(
        gain * observed.image,
        gain**2 * observed.variance,
        psf,
        observed.wcs,
        tuple(basis.bands.index(b) for b in observed.bands),
        _scale(observed, frame),
        oversampling=observed.oversampling,
    )


def _check_sharpness(observed: ObservedField, plane: Plane, basis: Basis) -> None:
    """The model must be as sharp as an observation, and the PSF image as fine as both."""
    scale = pixel_scale_of(plane.wcs, plane.pixel_scale)
    widths = psf_widths(observed.psf) * scale / observed.oversampling
    width, band = min(zip(widths, observed.bands, strict=True))
    model = float(basis.psf_sigma * basis.pixel_scale)
    if model > width:
        raise InputError(
            f"{observed.path} (field {observed.field}): the PSF of band {band} has a width of"
            f" {width:.3f} arcsec (sigma), less than that of the model, {model:.3f}; set"
            " frame.pixel_scale or frame.psf_sigma smaller and train a prior in that frame"
        )
    # On model pixels of the same size nothing finer can be said.
    finer = float(basis.pixel_scale) < (1 - SAME_PIXEL) * scale
    left, band = max(zip(nyquist_amplitude(observed.psf), observed.bands, strict=True))
    if finer and left > ALIASED:
        raise InputError(
            f"{observed.path} (field {observed.field}): the PSF image of band {band} is too"
            f" coarse for a model of {float(basis.pixel_scale):.3g} arcsec pixels: with"
            f" {observed.oversampling} of its pixels per pixel of {scale:.3g} arcsec it has"
            f" {left:.2f} of its transform left at its highest frequency (at most {ALIASED});"
            " give a PSF image that is finer by a whole number, and this number as PSF_SAMP"
            " (psf_samp)"
        )


def _with_noise(
    plane: Plane, observed: ObservedField, config: NoiseConfig, threshold: float
) -> Plane:
    """The plane with the correlation of its noise."""
    if config.correlation == "none":
        return plane
    if config.correlation == "given":
        return plane._replace(correlation=observed.correlation)
    try:
        found = estimate_noise(plane, threshold, config.reach)
    except ValueError as error:
        raise InputError(
            f"{observed.path} (field {observed.field}): noise.correlation: estimate: {error}, or"
            " set noise.correlation: given"
        ) from None
    beside = found[:, config.reach, config.reach + 1]
    LOG.info("%s: correlation of neighbours %s", observed.path, np.round(beside, 3))
    return plane._replace(correlation=found)


def _scale(observed: ObservedField, frame: FrameConfig) -> float:
    """Side of a pixel [arcsec]; that of the model where neither WCS nor instrument tell."""
    known = INSTRUMENTS.get(observed.instrument)
    fallback = known.pixel_scale if known else frame.pixel_scale
    if observed.wcs is None and fallback is None:
        raise InputError(
            f"{observed.path} (field {observed.field}): no WCS, and instrument"
            f" {observed.instrument!r} is not a known one: the side of a pixel is unknown; add a"
            " WCS, or set frame.pixel_scale [arcsec]"
        )
    return pixel_scale_of(observed.wcs, fallback or np.nan)


def _detect(observed: ObservedField, config: DetectConfig) -> Table:
    psf = at_pixels(observed.psf, observed.oversampling)
    try:
        found = detect_catalog(
            detection_image(observed.image, observed.variance, psf),
            observed.wcs,
            threshold=config.threshold,
            minarea=config.minarea,
        )
    except ValueError as error:
        where = f"{observed.path} (field {observed.field})"
        raise InputError(f"{where}: {error}") from None
    LOG.info("%s: %d sources detected", observed.field, len(found))
    return found


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        [FieldRow.of(row) for row in params.rows],
        Path(snakemake.input.basis),
        Path(snakemake.output.blends),
        BlendsConfig(**params.blends),
        DetectConfig(**params.detect),
        FrameConfig(**params.frame),
        NoiseConfig(**params.noise),
    )
