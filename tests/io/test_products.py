"""Products: what is written comes back, with units and provenance."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from blendem.inference.statistics import STAR_SPREAD
from blendem.io.products import (
    Samples,
    read_models,
    read_samples,
    read_table,
    write_catalog,
    write_map,
    write_models,
    write_samples,
)
from blendem.io.table import InputError
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import magnify

META = {"METHOD": "gaussian", "PRIOR": "ab12", "CONFIG": "cd34", "VERSION": "0.1.0"}
# Shape errors are ValueErrors, or TypeErrors where jaxtyping checks arguments first.
SHAPE_ERRORS = (ValueError, TypeError)


def test_catalog_round_trip_with_units_and_provenance(tmp_path):
    table = Table(
        {
            "id": [1, 2],
            "ra": [150.0, 150.1],
            "x": [1.5, 2.5],
            "type": ["star", "galaxy"],
            "flux_i": [10.0, 20.0],
            "flux_err_i": [1.0, 2.0],
            "mag_err_F814W": [0.1, 0.2],
            "size": [0.5, np.nan],
            "e1": [0.1, -0.2],
            "flags": [0, 1],
        }
    )
    path = tmp_path / "a.fits"
    write_catalog(path, table, META | {"NBLEND": 3}, flux_unit="nJy")
    back, cards = read_table(path)
    assert cards == META
    assert fits.getheader(path, "CATALOG")["NBLEND"] == 3
    for name in table.colnames:
        np.testing.assert_array_equal(back[name], table[name])
    units = {name: str(back[name].unit or "") for name in back.colnames}
    assert units == {
        "id": "",
        "ra": "deg",
        "x": "pix",
        "type": "",
        "flux_i": "nJy",
        "flux_err_i": "nJy",
        "mag_err_F814W": "mag",
        "size": "arcsec",
        "e1": "",
        "flags": "",
    }
    assert table["ra"].unit is None  # the caller's table is left alone


def test_units_that_astropy_does_not_know_survive(tmp_path):
    write_map(
        tmp_path / "m.fits", {"id": [1], "flux_i": [2.0]}, META, flux_unit="HSC-27"
    )
    assert fits.getheader(tmp_path / "m.fits", "MAP")["TUNIT2"] == "HSC-27"
    assert read_table(tmp_path / "m.fits")[0]["flux_i"][0] == 2.0


def test_a_product_must_say_where_it_comes_from(tmp_path):
    with pytest.raises(ValueError, match="lacks PRIOR, CONFIG, VERSION"):
        write_catalog(tmp_path / "a.fits", {"id": [1]}, {"METHOD": "x"})
    with pytest.raises(ValueError, match="'TOOLONGKEY' is no FITS keyword"):
        write_catalog(tmp_path / "a.fits", {"id": [1]}, META | {"TOOLONGKEY": 1})
    assert os.listdir(tmp_path) == []


def test_missing_and_wrong_products(tmp_path):
    with pytest.raises(InputError, match=r"a\.fits: no such file; run the rule"):
        read_table(tmp_path / "a.fits")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(tmp_path / "b.fits")
    with pytest.raises(InputError, match=r"b\.fits: holds no table"):
        read_table(tmp_path / "b.fits")


@pytest.fixture
def models(wcs):
    rng = np.random.default_rng(3)
    return {
        "sources": Table({"id": [4, 9], "x": [3.0, 7.0], "y": [2.0, 8.0]}),
        "bands": ("g", "r"),
        "model_mean": rng.normal(size=(2, 2, 5, 5)).astype(np.float32),
        "model_std": rng.uniform(size=(2, 2, 5, 5)).astype(np.float32),
        "observed_mean": rng.normal(size=(2, 2, 9, 7)).astype(np.float32),
        "observed_std": rng.uniform(size=(2, 2, 9, 7)).astype(np.float32),
        "corner": np.array([[-1, 0], [4, 5]]),
        "meta": META,
        "unit": "nJy",
        "image": rng.normal(size=(2, 12, 14)).astype(np.float32),
        "model": rng.normal(size=(2, 12, 14)).astype(np.float32),
        "wcs": wcs,
    }


def test_models_round_trip(tmp_path, models, wcs):
    path = tmp_path / "m.fits"
    write_models(path, **models)
    back = read_models(path)
    for hdu, key in {
        "MODEL_MEAN": "model_mean",
        "MODEL_STD": "model_std",
        "OBS_MEAN": "observed_mean",
        "OBS_STD": "observed_std",
        "SCI": "image",
        "MODEL": "model",
    }.items():
        np.testing.assert_array_equal(back[hdu], models[key])
    np.testing.assert_array_equal(back["RESIDUAL"], models["image"] - models["model"])
    assert back["IDS"]["id"].tolist() == [4, 9]
    assert back["IDS"]["corner_y"].tolist() == [-1, 4]
    assert back["IDS"]["corner_x"].tolist() == [0, 5]
    header = fits.getheader(path, "RESIDUAL")
    assert (header["BANDS"], header["BUNIT"], header["CTYPE1"]) == (
        "g,r",
        "nJy",
        "RA---TAN",
    )
    assert fits.getheader(path)["PRIOR"] == "ab12"


def test_models_without_the_whole_field(tmp_path, models):
    models |= {"image": None, "model": None, "wcs": None}
    write_models(tmp_path / "m.fits", **models)
    names = ["MODEL_MEAN", "MODEL_STD", "OBS_MEAN", "OBS_STD", "IDS"]
    assert list(read_models(tmp_path / "m.fits")) == names


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bands", ("g", "r", "i")),
        ("model_std", np.zeros((2, 2, 5, 6), np.float32)),
        ("observed_mean", np.zeros((1, 2, 9, 7), np.float32)),
        ("corner", np.zeros((3, 2), int)),
    ],
)
def test_models_that_do_not_fit_together_are_refused(tmp_path, models, key, value):
    with pytest.raises(SHAPE_ERRORS):
        write_models(tmp_path / "m.fits", **(models | {key: value}))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def basis():
    rng = np.random.default_rng(5)
    return Basis(
        mean=jnp.asarray(rng.normal(size=(2, 7, 7)), jnp.float32),
        modes=jnp.asarray(rng.normal(size=(3, 2, 7, 7)), jnp.float32),
        eigenvalues=jnp.ones(3, jnp.float32),
        residual=jnp.asarray(0.0, jnp.float32),
        psf_sigma=jnp.asarray(0.7, jnp.float32),
        pixel_scale=jnp.asarray(0.168, jnp.float32),
        bands=("g", "r"),
    )


@pytest.fixture
def samples():
    rng = np.random.default_rng(6)
    return Samples(
        ids=np.array([7, 8]),
        blend=np.array([0, 0]),
        is_star=np.array([False, True]),
        centers=np.array([[3.5, 4.5], [8.0, 9.0]]),
        scale=np.array([100.0, 40.0]),
        mean=rng.normal(size=(2, 3)),
        z=rng.normal(size=(4, 2, 3)).astype(np.float32),
        prior_sha256="ab" * 32,
        attrs={"config": "cd34", "bands": ["g", "r"]},
        zoom=np.array([0, 0]),
    )


def test_samples_round_trip(tmp_path, samples):
    write_samples(tmp_path / "s.h5", samples)
    back = read_samples(tmp_path / "s.h5")
    for name in ("ids", "blend", "is_star", "centers", "scale", "mean", "z", "zoom"):
        np.testing.assert_array_equal(getattr(back, name), getattr(samples, name))
    assert (back.prior_sha256, back.attrs) == (samples.prior_sha256, samples.attrs)


def test_images_of_a_galaxy_are_those_of_the_basis(samples, basis):
    """Against `Basis.decode`, in float32: 1e-5 of the brightest pixel."""
    images = samples.images(basis, 0, prior_sha256="ab" * 32)
    expected = 100.0 * np.asarray(jax.vmap(basis.decode)(jnp.asarray(samples.z[:, 0])))
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(images, expected, rtol=0, atol=atol)
    mean = 100.0 * np.asarray(basis.decode(jnp.asarray(samples.mean[0], jnp.float32)))
    np.testing.assert_allclose(samples.mean_image(basis, 0), mean, rtol=0, atol=atol)


def test_images_of_a_star_are_points_of_the_drawn_flux(samples, basis):
    images = samples.images(basis, 1)
    flux = 40.0 * (1 + STAR_SPREAD * samples.z[:, 1, :2])
    np.testing.assert_allclose(images.sum((-2, -1)), flux, rtol=1e-6)
    # Neighbour over centre of a Gaussian of sigma 0.7 pixel: exp(-1 / (2 0.7^2)). The basis
    # holds 0.7 in float32, hence 1e-6.
    ratio = images[:, :, 3, 4] / images[:, :, 3, 3]
    np.testing.assert_allclose(ratio, np.exp(-1 / (2 * 0.7**2)), rtol=1e-6)


def test_samples_refuse_another_basis(samples, basis):
    with pytest.raises(ValueError, match="refer to prior abab"):
        samples.images(basis, 0, prior_sha256="cd" * 32)
    fewer = Basis(
        basis.mean,
        basis.modes[:2],
        basis.eigenvalues[:2],
        basis.residual,
        basis.psf_sigma,
        basis.pixel_scale,
        basis.bands,
    )
    with pytest.raises(ValueError, match="3 modes, the basis 2"):
        samples.images(fewer, 0)


def test_images_of_a_magnified_galaxy_are_those_of_the_large_stamps(samples, basis):
    grown = replace(samples, zoom=np.array([1, 0]))
    images, large = grown.images(basis, 0), magnify(basis, 1)
    expected = 100.0 * (
        large.mean + np.tensordot(samples.z[:, 0], np.asarray(large.modes), axes=1)
    )
    np.testing.assert_allclose(images, expected, atol=1e-5 * np.abs(expected).max())
    assert grown.images(basis, 1).shape == samples.images(basis, 1).shape


def test_samples_of_inconsistent_shapes_are_refused(samples):
    with pytest.raises(SHAPE_ERRORS):
        Samples(**(samples.__dict__ | {"scale": np.ones(3)}))
