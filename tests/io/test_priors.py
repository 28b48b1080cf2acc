"""Priors on disk."""

import json

import equinox as eqx
import jax
import numpy as np
import pytest

from blendem.io.headers import read_header
from blendem.io.priors import check_prior, read_prior, write_prior
from blendem.io.ship import ship
from blendem.io.shipped import shipped_prior
from blendem.io.table import InputError
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.prior.network import LatentNetwork
from blendem.prior.unet import UNet, UNetPrior, unet_like


def gaussian(rng, analysis=False):
    modes = rng.normal(size=(3, 2, 5, 5)).astype(np.float32)
    basis = Basis(
        rng.normal(size=(2, 5, 5)).astype(np.float32),
        modes,
        np.sum(modes**2, axis=(1, 2, 3)),
        np.array(0.25, np.float32),
        np.array(0.7, np.float32),
        np.array(0.168, np.float32),
        ("g", "i"),
        2 * modes if analysis else None,
    )
    return GaussianPrior(basis, rng.normal(size=3), np.tril(rng.normal(size=(3, 3))))


def latent(rng, key, network=True):
    mixture = MixturePrior.of(
        [0.3, 0.7], rng.normal(size=(2, 2)), np.stack([np.eye(2), 0.1 * np.eye(2)])
    )
    drawn = LatentNetwork(2, 8, 2, key=key) if network else None
    fine = None if network else rng.uniform(size=(2, 1))
    return LatentPrior(gaussian(rng, True), mixture, drawn, fine)


def unet(rng, key):
    like = unet_like(gaussian(rng).basis, channels=(4, 6), patch=2, dtype="float64")
    drawn = UNet(2, (4, 6), 2, key=key)
    moments = jax.tree.map(
        lambda a: rng.normal(size=a.shape).astype(a.dtype), like.moments
    )
    return UNetPrior(gaussian(rng), moments, drawn, like.spread + np.float32(0.5))


@pytest.fixture(params=["gaussian", "analysis", "latent", "mixture", "unet"])
def saved(request, tmp_path, rng, key):
    kinds = {
        "gaussian": lambda: gaussian(rng),
        "analysis": lambda: gaussian(rng, True),
        "latent": lambda: latent(rng, key),
        "mixture": lambda: latent(rng, key, network=False),
        "unet": lambda: unet(rng, key),
    }
    prior = kinds[request.param]()
    path = tmp_path / "00.eqx"
    write_prior(path, prior, {"lap": 0, "note": "any"})
    return path, prior


def test_prior_comes_back_as_written(saved):
    path, prior = saved
    read, card = read_prior(path)
    assert card == {"lap": 0, "note": "any"} and read.basis.bands == ("g", "i")
    assert jax.tree.structure(read) == jax.tree.structure(prior)
    pairs = zip(jax.tree.leaves(read), jax.tree.leaves(prior), strict=True)
    for a, b in pairs:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def test_a_latent_prior_denoises_as_before(tmp_path, rng, key):
    prior = latent(rng, key)
    write_prior(tmp_path / "a.eqx", prior, {})
    e_t = jax.numpy.asarray(rng.normal(size=(4, 2)))
    read = read_prior(tmp_path / "a.eqx")[0]
    for a, b in zip(
        read.denoise_latent(e_t, jax.numpy.asarray(0.3)),
        prior.denoise_latent(e_t, jax.numpy.asarray(0.3)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_the_header_is_read_without_the_leaves(saved):
    path, prior = saved
    header = read_header(path)
    tiers = {GaussianPrior: "gaussian", LatentPrior: "latent", UNetPrior: "unet"}
    tier = tiers[type(prior)]
    assert (header["tier"], header["stamp"], header["modes"]) == (tier, 5, 3)
    assert header["bands"] == ["g", "i"] and header["card"]["note"] == "any"


def test_gaussian_priors_of_the_first_format_are_still_read(tmp_path, rng):
    prior, path = gaussian(rng), tmp_path / "old.eqx"
    header = {"format": "blendem-gaussian-prior-1", "bands": ["g", "i"]}
    header |= {"stamp": 5, "modes": 3, "card": {"lap": 4}}
    with open(path, "wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        eqx.tree_serialise_leaves(file, prior)
    read, card = read_prior(path)
    assert card == {"lap": 4} and isinstance(read, GaussianPrior)
    np.testing.assert_array_equal(read.basis.modes, prior.basis.modes)
    np.testing.assert_array_equal(read.cholesky, prior.cholesky)


def test_files_that_are_no_whole_prior_are_named(saved, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"00\.eqx: truncated or damaged"):
        read_prior(path)
    path.write_bytes(whole[: whole.index(b"\n") + 1])
    with pytest.raises(InputError, match=r"00\.eqx: truncated or damaged"):
        read_prior(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=r"00\.eqx: damaged, it goes on"):
        read_prior(path)
    header = json.loads(whole.splitlines()[0])
    rest = whole[whole.index(b"\n") :]
    path.write_bytes(json.dumps(header | {"format": "other-9"}).encode() + rest)
    with pytest.raises(InputError, match=r"00\.eqx: format 'other-9'.*blendem-prior-3"):
        read_prior(path)
    path.write_bytes(json.dumps(header | {"tier": "flow"}).encode() + rest)
    with pytest.raises(InputError, match=r"00\.eqx: tier 'flow' is unknown"):
        read_prior(path)
    path.write_bytes(json.dumps(header | {"modes": 4}).encode() + rest)
    with pytest.raises(InputError, match=r"00\.eqx: truncated or damaged"):
        read_prior(path)
    del header["network"]
    path.write_bytes(json.dumps(header).encode() + rest)
    with pytest.raises(InputError, match=r"00\.eqx: its header lacks network"):
        read_prior(path)
    path.write_bytes(b"\x89HDF\n")
    with pytest.raises(InputError, match=r"00\.eqx: not a prior"):
        read_prior(path)
    with pytest.raises(InputError, match="no such prior"):
        read_prior(tmp_path / "none.eqx")


def test_a_prior_that_does_not_fit_names_every_difference(rng):
    prior = gaussian(rng)
    fits = {"bands": ("i",), "stamp": 5, "pixel_scale": 0.1681, "psf_sigma": 0.7}
    check_prior("a.eqx", prior, where="field f", **fits)
    check_prior("a.eqx", prior, where="field f")
    with pytest.raises(InputError) as caught:
        check_prior(
            "a.eqx",
            prior,
            where="field f",
            bands=("g", "r", "z"),
            stamp=49,
            pixel_scale=0.2,
            psf_sigma=0.9,
        )
    text = str(caught.value)
    assert text.startswith(
        "prior a.eqx: it has the bands g, i, field f needs r, z: set"
    )
    assert "stamps are 5 pixels wide, field f needs 49: set frame.stamp: 5" in text
    assert "pixel_scale is 0.168 arcsec, field f has 0.2: set" in text
    assert "psf_sigma is 0.7 pixel, field f has 0.9" in text


def test_a_compact_prior_is_small_and_nearly_the_same(tmp_path, rng, key):
    prior = latent(rng, key, network=False)
    basis = prior.basis
    flat = np.asarray(basis.modes, float).reshape(3, -1)
    dual = np.linalg.solve(flat @ flat.T, flat).reshape(basis.modes.shape)
    prior = eqx.tree_at(lambda p: p.gaussian.basis.analysis, prior, dual)
    path = tmp_path / "small.eqx"
    write_prior(path, prior, {"lap": 3}, compact=True)
    write_prior(tmp_path / "large.eqx", prior, {"lap": 3})
    assert path.stat().st_size < 0.9 * (tmp_path / "large.eqx").stat().st_size
    read, card = read_prior(path)
    assert card == {"lap": 3} and read_header(path)["compact"]
    z = rng.normal(size=(4, 3))
    images = np.asarray(prior.basis.decode(z))
    scale = np.abs(images).max()
    np.testing.assert_allclose(read.basis.decode(z), images, atol=2e-3 * scale)
    np.testing.assert_allclose(read.basis.encode(read.basis.decode(z)), z, atol=1e-5)
    np.testing.assert_allclose(
        read.mixture.covariances, prior.mixture.covariances, 1e-5
    )
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"small\.eqx: truncated or damaged"):
        read_prior(path)


def test_the_shipped_prior_has_the_bands_of_the_run(tmp_path, rng, key):
    with pytest.raises(InputError, match="is empty"):
        shipped_prior(tmp_path, ["g"])
    write_prior(tmp_path / "gi.eqx", latent(rng, key, network=False), {}, compact=True)
    assert shipped_prior(tmp_path, ["i"]).name == "gi.eqx"
    with pytest.raises(InputError, match=r"bands g, y \(gi\.eqx: g, i\); set frame"):
        shipped_prior(tmp_path, ["g", "y"])


def test_a_prior_is_shipped_with_its_command(tmp_path, rng, key, monkeypatch):
    write_prior(tmp_path / "a.eqx", latent(rng, key, network=False), {"lap": 2})
    ship(tmp_path / "a.eqx", tmp_path / "b.eqx", "make it")
    assert read_prior(tmp_path / "b.eqx")[1] == {"lap": 2, "command": "make it"}
    monkeypatch.setattr("blendem.io.ship.LARGEST", 100)
    with pytest.raises(InputError, match=r"a\.eqx: .* MB in compact form"):
        ship(tmp_path / "a.eqx", tmp_path / "c.eqx", "make it")
    assert not (tmp_path / "c.eqx").exists()
