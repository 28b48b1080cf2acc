"""A galaxy that is larger than its stamp, from its image to the catalog."""

from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.table import Table

from blendem.config import (
    BlendsConfig,
    DetectConfig,
    FrameConfig,
    InferConfig,
    NoiseConfig,
)
from blendem.io.blends import read_blends
from blendem.io.fields import write_field
from blendem.io.priors import gaussian_of, read_prior, write_prior
from blendem.io.products import read_h5, read_models, read_samples, read_table
from blendem.io.table import FieldRow
from blendem.survey.extract import SourceFlag
from blendem.survey.instruments import INSTRUMENTS, effective_psf

pytestmark = pytest.mark.slow
SHIPPED = Path(__file__).parents[2] / "priors" / "hsc_grizy.eqx"
SIDE, STAMP = 128, 49
AT = np.array([[63.3, 62.8], [69.6, 96.2]])  # (y, x) [pixel]
# Half-light radii [pixel], fluxes in i [image unit]: 19.9 and 22 mag.
RADIUS, FLUX = (12.0, 2.0), np.array([700.0, 100.0])
COLOURS = np.array([0.47, 0.70, 1.0, 1.34, 1.65])


def image(rng):
    """A large disk and a small one as HSC sees them; noise."""
    hsc = INSTRUMENTS["hsc_deep"]
    planes = []
    for b in range(len(COLOURS)):
        psf = galsim.Moffat(beta=4.765, fwhm=hsc.psf_fwhm[b])
        plane = galsim.ImageD(np.zeros((SIDE, SIDE)), xmin=0, ymin=0, scale=0.168)
        for (y, x), radius, flux in zip(AT, RADIUS, FLUX, strict=True):
            disk = galsim.Exponential(half_light_radius=radius * 0.168)
            seen = galsim.Convolve(disk.shear(g1=0.1, g2=0.1), psf)
            seen.withFlux(flux * COLOURS[b]).drawImage(
                plane, center=galsim.PositionD(x, y), add_to_image=True
            )
        planes.append(plane.array)
    sigma = np.asarray(hsc.sky_sigma)[:, None, None]
    return np.stack(planes) + sigma * rng.normal(size=(5, SIDE, SIDE)), sigma**2


@pytest.fixture(scope="module")
def results(tmp_path_factory, script):
    """Catalog, models, samples and blends by the largest factor that is allowed."""
    folder = tmp_path_factory.mktemp("large")
    pixels, variance = image(np.random.default_rng(8))
    write_field(
        folder / "a.fits",
        image=pixels,
        variance=np.broadcast_to(variance, pixels.shape),
        psf=effective_psf(INSTRUMENTS["hsc_deep"], 41),
        bands=tuple("grizy"),
        magzero=27.0,
        catalog=Table({"id": [1, 2], "x": AT[:, 1], "y": AT[:, 0]}),
    )
    prior = folder / "basis.eqx"
    write_prior(prior, gaussian_of(read_prior(SHIPPED)[0]), {})
    rows = [FieldRow("a", "hsc_deep", folder / "a.fits")]
    infer = InferConfig(samples=16)
    found = {}
    for magnify in (1, 2):
        out = folder / str(magnify)
        config = BlendsConfig(buckets=({"sources": 2, "size": 128},), magnify=magnify)
        script("extract_blends").main(
            rows,
            prior,
            out / "blends.h5",
            config,
            DetectConfig(max_sources=2),
            FrameConfig(stamp=STAMP),
            NoiseConfig(),
        )
        script("compute_statistics").main(
            out / "blends.h5", prior, out / "statistics.h5", infer, config, 1e9
        )
        script("sample_posterior").main(
            out / "blends.h5",
            out / "statistics.h5",
            prior,
            out / "posterior.h5",
            infer,
            1,
            1,
        )
        script("measure").main(
            rows,
            out / "blends.h5",
            out / "statistics.h5",
            out / "posterior.h5",
            prior,
            [out / "catalog" / "a.fits"],
            [out / "models" / "a.fits"],
            [out / "samples" / "a.h5"],
            out / "measured.h5",
            infer,
            config,
            {"METHOD": "test", "CONFIG": "0", "VERSION": "0"},
        )
        found[magnify] = {
            "catalog": read_table(out / "catalog" / "a.fits")[0].to_pandas(),
            "models": read_models(out / "models" / "a.fits"),
            "samples": read_samples(out / "samples" / "a.h5"),
            "blends": read_blends(out / "blends.h5"),
            "scores": read_h5(out / "measured.h5")[0]["blends"],
            "basis": read_prior(prior)[0].basis,
        }
    return found


def test_the_light_is_found_and_the_flag_goes(results):
    small, large = (results[m]["catalog"] for m in (1, 2))
    assert list(small["magnification"]) == [1, 1]
    assert list(large["magnification"]) == [2, 1]
    flags = [
        np.asarray(table["flags"]) & SourceFlag.BEYOND_STAMP for table in (small, large)
    ]
    assert (flags[0] > 0).all() and (flags[1] == 0).all()
    for b, colour in zip("grizy", COLOURS, strict=True):
        missing = small[f"flux_{b}"][0] / (FLUX[0] * colour) - 1
        left = large[f"flux_{b}"][0] / (FLUX[0] * colour) - 1
        # 14 % of the light is beyond 24.5 pixels, 0.9 % beyond 48.5; less with the corners.
        assert missing < -0.05 and abs(left) < 0.02
    chi2 = [
        results[m]["scores"]["chi2"] / results[m]["scores"]["expected_chi2"]
        for m in (1, 2)
    ]
    # 80000 pixels: chi2 over its expectation is known to 0.005.
    assert chi2[0] > 1.03 and abs(chi2[1] - 1) < 0.02
    # None of the galaxies that EM learns from.
    assert not results[2]["scores"]["in_em"].any()
    assert results[1]["scores"]["in_em"].all()


def test_products_show_the_whole_galaxy(results):
    for magnify, side in ((1, STAMP), (2, 2 * STAMP - 1)):
        found = results[magnify]
        catalog, models = found["catalog"], found["models"]
        assert models["MODEL_MEAN"].shape == (2, 5, side, side)
        assert list(models["IDS"]["magnification"]) == list(catalog["magnification"])
        for i, b in enumerate("grizy"):
            # The sum of a model image is the flux.
            np.testing.assert_allclose(
                models["MODEL_MEAN"][:, i].sum((-2, -1)),
                catalog[f"flux_{b}"],
                rtol=1e-4,
            )
            np.testing.assert_allclose(
                models["OBS_MEAN"][0, i].sum(), catalog[f"flux_{b}"][0], rtol=0.01
            )
        draws = found["samples"].images(found["basis"], 0)
        assert draws.shape[-1] == side
        np.testing.assert_allclose(
            draws[:, 2].sum((-2, -1)).mean(),
            catalog["flux_i"][0],
            atol=5 * catalog["flux_err_i"][0],
        )
    small, large = (np.std(results[m]["models"]["RESIDUAL"][2]) for m in (1, 2))
    noise = INSTRUMENTS["hsc_deep"].sky_sigma[2]
    # 16384 pixels: the deviation is known to 0.006.
    assert small > 1.018 * noise and abs(large / noise - 1) < 0.012


def test_the_size_is_that_of_the_galaxy(results):
    """Half of the light is within it; the PSF of the model adds 0.2 %."""
    true = RADIUS[0] * 0.168
    small, large = (results[m]["catalog"]["size"] for m in (1, 2))
    assert small[0] < 0.93 * true
    assert abs(large[0] / true - 1) < 0.03
    np.testing.assert_allclose(large[1], RADIUS[1] * 0.168, rtol=0.15)
    # Sheared by (0.1, 0.1): distortions of 2 g / (1 + g^2).
    for name in ("e1", "e2"):
        np.testing.assert_allclose(
            results[2]["catalog"][name][0], 0.2 / 1.02, atol=0.02
        )
