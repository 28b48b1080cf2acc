"""Files of PSFEx: PSFs that vary over an image."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from galsim.des import DES_PSFEx

from blendem.io.checks import check_psf
from blendem.io.fitsfile import open_fits
from blendem.io.table import InputError
from blendem.survey.psf_model import PSFExModel, draw_psfex, psfex_size


def read_psfex(
    paths: Sequence[Path],
    bands: Sequence[str],
    shape: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
) -> tuple[PSFExModel | None, list[str]]:
    """Read the model of every band, and check it all over the image.

    Args:
        paths: One file per band, in their order.
        bands: Names of the bands.
        shape: Height and width of the image [pixel].
        origin: Pixel (y, x) of the models at which the image begins.

    Returns:
        The model, or None, and what is wrong with the files.
    """
    if len(paths) != len(bands):
        return None, [
            f"column psf: {len(paths)} files for {len(bands)} bands {tuple(bands)}; give one"
            " per band, in their order, separated by commas"
        ]
    models, names, problems = [], [], []
    for path, band in zip(paths, bands, strict=True):
        names.append(f"PSF model {path} (band {band})")
        try:
            models.append(_open(path))
        except InputError as error:
            problems.append(f"column psf, band {band}: {error}")
    if problems:
        return None, problems
    size = max(map(psfex_size, models))
    for model, name, band in zip(models, names, bands, strict=True):
        problems += _check(model, name, band, size, shape, origin)
    return PSFExModel(tuple(models), tuple(names), size, origin), problems


def _open(path: Path) -> DES_PSFEx:
    """The only model of a file.

    Raises:
        InputError: If it is missing, damaged, not a file of PSFEx, or one that cannot be used.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the table of fields")
    tables = [
        hdu
        for hdu in open_fits(path)
        if isinstance(hdu, fits.BinTableHDU) and "PSF_MASK" in hdu.columns.names
    ]
    if not tables:
        raise InputError(
            f"{path}: no table has a column PSF_MASK; give the .psf file that PSFEx writes"
        )
    if len(tables) > 1:
        raise InputError(
            f"{path}: holds {len(tables)} models, one per detector; give the file of one"
        )
    try:
        model = DES_PSFEx(tables[0])
        scales = (model.x_scale, model.y_scale, model.sample_scale)
        usable = min(scales) > 0
    except KeyError as error:
        raise InputError(
            f"{path}: lacks a card of PSFEx ({error.args[0]}); give the .psf file as PSFEx"
            " writes it"
        ) from None
    except (OSError, IndexError, AttributeError, TypeError):
        raise InputError(
            f"{path}: cards and samples do not fit together, or the model is not a polynomial"
            " in X_IMAGE and Y_IMAGE alone, in one group; fit it so with PSFEx (PSFVAR_KEYS,"
            " PSFVAR_GROUPS)"
        ) from None
    if not usable:
        raise InputError(
            f"{path}: POLSCAL1, POLSCAL2, PSF_SAMP are {scales}; they must be positive, fit"
            " the model again"
        )
    return model


def _check(
    model: DES_PSFEx,
    name: str,
    band: str,
    size: int,
    shape: tuple[int, int],
    origin: tuple[int, int],
) -> Iterator[str]:
    """The first problem of a band at the corners, edges and middle of the image."""
    height, width = shape
    first_y, first_x = origin
    for y in first_y + np.array([0, (height - 1) / 2, height - 1]):
        for x in first_x + np.array([0, (width - 1) / 2, width - 1]):
            try:
                image = draw_psfex(model, (y, x), size)
            except ValueError as error:
                yield f"{name}: {error}"
                return
            problems = list(
                check_psf(
                    image[None], (band,), f"{name} at (x, y) = ({x:.1f}, {y:.1f})"
                )
            )
            if problems:
                yield problems[0]
                return
