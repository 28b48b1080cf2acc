"""Redshifts that users give, and the files of both priors."""

import equinox as eqx
import jax
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from tests.inference.test_dust import priors

from blendem.io.dust import (
    check_dusty,
    read_dust_priors,
    read_dusty,
    read_dusty_stamps,
    write_dust_prior,
    write_dusty,
)
from blendem.io.fields import write_field
from blendem.io.priors import write_prior
from blendem.io.table import FieldRow, InputError
from blendem.prior.dust import DustPrior
from blendem.survey.dusty import DustyGalaxies

BANDS = ("g", "r")


def field(tmp_path, name="a", bands=BANDS, **columns):
    """A field of three galaxies and a star, `x` and `y` given."""
    image = np.ones((len(bands), 20, 20), np.float32)
    line = np.arange(7) - 3
    psf = np.exp(-0.5 * (line[:, None] ** 2 + line**2))
    table = Table({"id": [3, 1, 2, 7], "x": [3.0, 8, 12, 15], "y": [4.0, 4, 9, 9]})
    table["type"] = ["galaxy", "galaxy", "star", "galaxy"]
    for key, values in columns.items():
        table[key] = values
    path = tmp_path / f"{name}.fits"
    write_field(
        path,
        image=image,
        variance=image,
        psf=np.repeat((psf / psf.sum())[None], len(bands), axis=0),
        bands=bands,
        magzero=27.0,
        catalog=table,
    )
    return FieldRow(name, "mine", path)


def test_redshifts_are_read_and_a_star_needs_none(tmp_path):
    row = field(tmp_path, z_phot=[0.4, 0.0, np.nan, 1.25])
    catalog = read_dusty(row, "z_phot", BANDS).catalog
    np.testing.assert_array_equal(catalog["id"], [3, 1, 2, 7])
    np.testing.assert_array_equal(catalog["z_phot"], [0.4, 0.0, np.nan, 1.25])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, ["lacks column z", "add it"]),
        ({"z": [0.4, np.nan, 0.0, 0.1]}, ["column z of source 1 is not within 0 to"]),
        ({"z": [-0.1, 0.2, 0.0, 9.0]}, ["source 3, 7", "leave the source out"]),
        ({"z": ["a", "b", "c", "d"]}, ["column z must hold numbers"]),
    ],
)
def test_bad_redshifts_name_file_field_and_remedy(tmp_path, columns, words):
    row = field(tmp_path, **columns)
    with pytest.raises(InputError) as error:
        read_dusty(row, "z", BANDS)
    for word in [*words, "a.fits", "field a"]:
        assert word in str(error.value)


def test_other_bands_and_second_observations_are_refused(tmp_path):
    z = {"z": [0.1, 0.1, 0.1, 0.1]}
    good, other = field(tmp_path, **z), field(tmp_path, "b", ("r", "g"), **z)
    check_dusty([good], "z", BANDS)
    with pytest.raises(InputError) as error:
        check_dusty([good, other, good], "z", BANDS)
    text = str(error.value)
    assert "it has the bands r,g" in text and "a second observation" in text


def test_a_field_without_catalog_is_refused(tmp_path):
    row = field(tmp_path, z=[0.1] * 4)
    with fits.open(row.path) as hdus:
        hdus[:-1].writeto(tmp_path / "c.fits")
    with pytest.raises(InputError, match="no catalog"):
        read_dusty(FieldRow("c", "mine", tmp_path / "c.fits"), "z", BANDS)


def test_priors_come_back(tmp_path, rng):
    galaxy, dust = priors(rng)
    galaxy, latent = (
        eqx.tree_at(
            lambda p: p.gaussian.basis,
            prior,
            jax.tree.map(lambda x: np.asarray(x, np.float32), prior.gaussian.basis),
        )
        for prior in (galaxy, dust.latent)
    )
    dust = DustPrior(latent, "linear")
    write_prior(tmp_path / "g.eqx", galaxy, {})
    write_dust_prior(tmp_path / "d.eqx", dust, {"stamps": 3})
    again = read_dust_priors(tmp_path / "g.eqx", tmp_path / "d.eqx")
    assert again[1].link == "linear"
    z = rng.normal(size=(2, 3))
    np.testing.assert_allclose(again[1].attenuation(z), dust.attenuation(z), rtol=1e-5)
    z = rng.normal(size=(2, 4))
    np.testing.assert_allclose(
        again[0].basis.decode(z), galaxy.basis.decode(z), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(InputError, match="no prior of dust"):
        read_dust_priors(tmp_path / "g.eqx", tmp_path / "g.eqx")


def test_training_galaxies_are_joined(tmp_path, rng):
    def some(n):
        return DustyGalaxies(
            rng.normal(size=(n, 2, 3, 3)),
            rng.uniform(size=(n, 3, 3)).astype(np.float32),
            rng.uniform(size=n),
            rng.uniform(size=(n, 2)),
            rng.uniform(size=(n, 2)),
        )

    parts = some(2), some(3)
    for i, part in enumerate(parts):
        write_dusty(tmp_path / f"{i}.h5", part)
    joined = read_dusty_stamps([tmp_path / "0.h5", tmp_path / "1.h5"])
    for name in DustyGalaxies._fields:
        expected = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(joined, name), expected)
