"""Populations against the formulae that they cite, and colours against GalSim."""

import galsim
import numpy as np
import pytest
from scipy import integrate, stats

from blendem.survey import population, sed
from blendem.survey.population import (
    draw_galaxies,
    draw_stars,
    galaxy_density,
    total_flux,
)


@pytest.fixture(scope="module")
def galaxies():
    return draw_galaxies(20_000, np.random.default_rng(1), mag_limit=25.0)


def test_number_counts_follow_the_science_book(galaxies):
    """N(<i) = 46 10^(0.31 (i - 25)) per arcmin^2, LSST Science Book section 3.7.2."""
    assert np.isclose(galaxy_density(25.0), 46.0)
    assert np.isclose(galaxy_density(22.0), 46.0 * 10**-0.93)
    mag = galaxies["mag_i"]
    assert mag.min() > 18
    assert mag.max() < 25
    for limit in (20.0, 22.0, 24.0):
        share = (10 ** (0.31 * limit) - 10 ** (0.31 * 18)) / (
            10 ** (0.31 * 25) - 10 ** (0.31 * 18)
        )
        error = np.sqrt(share * (1 - share) / len(mag))
        assert abs(np.mean(mag < limit) - share) < 4 * error
    bright = galaxy_density(25.0) - galaxy_density(18.0)
    assert np.isclose(galaxy_density(25.0, mag_bright=18.0), bright)


@pytest.mark.parametrize("limit", [24.0, 25.0])
def test_redshifts_of_all_brighter_galaxies_follow_the_science_book(limit):
    """Summed over magnitudes, p(z) ~ z^2 exp(-z/z0) with z0 = 0.0417 i - 0.744.

    The weights are clipped for the 10 % of galaxies brighter than 22, hence 2 % of slack.
    """
    z = draw_galaxies(20_000, np.random.default_rng(2), mag_limit=limit)["z"]
    z0 = 0.0417 * limit - 0.744
    for edge in (0.3, 0.6, 1.0, 1.5, 2.0):
        expected = integrate.quad(lambda z: z**2 * np.exp(-z / z0), 0, edge)[0]
        assert abs(np.mean(z < edge) - expected / (2 * z0**3)) < 0.02


def test_sizes_axis_ratios_and_angles(galaxies):
    """Medians of the cited COSMOS samples, and isotropy."""
    faint = galaxies[np.abs(galaxies["mag_i"] - 24.5) < 0.2]
    # Median 0.20" of COSMOS stamps at 24.5; 20 % for the spread between samples.
    assert np.isclose(faint["hlr_disk"].median(), 0.20, rtol=0.2)
    scatter = np.log(faint["hlr_disk"]).std()
    assert np.isclose(scatter, 0.40, rtol=0.05)
    assert np.isclose(galaxies["q_disk"].median(), 0.57, atol=0.02)
    uniform = stats.kstest(galaxies["beta"] / np.pi, "uniform")
    assert uniform.pvalue > 1e-3


def test_fluxes_of_the_components_add_up_to_the_magnitude(galaxies):
    flux_i = 10 ** (-0.4 * (galaxies["mag_i"] - 27.0))
    np.testing.assert_allclose(total_flux(galaxies, "i"), flux_i, rtol=1e-12)
    bulge = galaxies["flux_i_bulge"] / flux_i
    np.testing.assert_allclose(bulge, galaxies["bt_i"], rtol=1e-9, atol=1e-15)
    knots = galaxies["flux_i_knots"] / (
        galaxies["flux_i_knots"] + galaxies["flux_i_disk"]
    )
    np.testing.assert_allclose(knots, galaxies["knots_frac"], rtol=1e-9, atol=1e-15)


def test_colours_meet_hsc_photometry_of_cosmos(galaxies):
    """Median HSC colours of 24 COSMOS galaxies of 23.5 < i < 25 (BlendingToolKit stamps)."""
    faint = galaxies[galaxies["mag_i"] > 23.5]
    mag = {b: -2.5 * np.log10(total_flux(faint, b)) for b in "grizy"}
    expected = {"gr": 0.29, "ri": 0.32, "iz": 0.28, "zy": 0.20}
    for (a, b), value in expected.items():
        # The 16-84 % range of 24 galaxies is 0.6 mag: three standard errors are 0.2.
        assert abs(np.median(mag[a] - mag[b]) - value) < 0.2


@pytest.mark.parametrize("name", ["E", "Im"])
def test_colours_of_templates_match_galsim(name):
    """AB magnitudes by GalSim's own integrator, at redshifts between grid points."""
    template = galsim.SED(f"CWW_{name}_ext.sed", wave_type="Ang", flux_type="flambda")
    bandpass = {
        band: galsim.Bandpass(file, wave_type="nm").withZeropoint("AB")
        for band, file in sed.FILTERS.items()
    }
    z = np.array([0.013, 0.51, 1.207])
    index = np.full(3, float(sed.TEMPLATES.index(name)))
    colours = -2.5 * np.log10(sed.galaxy_colours(index, z))
    for row, redshift in zip(colours, z, strict=True):
        shifted = template.atRedshift(redshift)
        mag = [shifted.calculateMagnitude(bandpass[band]) for band in sed.BANDS]
        expected = np.array(mag) - mag[sed.BANDS.index("i")]
        # Interpolation between redshifts 0.025 apart, across the 400 nm break.
        np.testing.assert_allclose(row, expected, atol=0.02)


def test_bulges_are_redder_and_knots_bluer_than_disks(galaxies):
    """Below z = 1; beyond, the far-UV upturn of old templates enters g."""
    both = galaxies[(galaxies["bt_i"] > 0) & (galaxies["knots_n"] > 0)]
    both = both[both["z"] < 1]

    def g_i(component):
        return -2.5 * np.log10(
            both[f"flux_g_{component}"] / both[f"flux_i_{component}"]
        )

    assert np.all(g_i("bulge") > g_i("disk") - 1e-9)
    assert np.all(g_i("knots") < g_i("disk") + 1e-9)
    assert np.median(g_i("bulge") - g_i("knots")) > 0.3


def test_a_source_does_not_depend_on_how_many_follow():
    few = draw_galaxies(7, np.random.default_rng(5))
    many = draw_galaxies(50, np.random.default_rng(5))
    assert few.equals(many.iloc[:7])
    other = draw_galaxies(7, np.random.default_rng(6))
    assert not np.any(few["mag_i"] == other["mag_i"])
    stars = draw_stars(20, np.random.default_rng(5))
    assert draw_stars(3, np.random.default_rng(5)).equals(stars.iloc[:3])


def test_wrong_population_is_large_exponential_and_of_one_colour():
    right = draw_galaxies(100, np.random.default_rng(3))
    wrong = draw_galaxies(100, np.random.default_rng(3), population="wrong")
    np.testing.assert_allclose(wrong["hlr_disk"], 1.5 * right["hlr_disk"])
    np.testing.assert_array_equal(wrong["mag_i"], right["mag_i"])
    assert (wrong["n_disk"] == 1).all()
    assert not wrong[["bt_i", "knots_n"]].any(axis=None)
    colour = total_flux(wrong, "g") / total_flux(wrong, "i")
    np.testing.assert_allclose(colour, colour[0], rtol=1e-12)


def test_stars_lie_on_the_locus():
    """M dwarfs of g-i = 2.5: r-i = 1.05 (Covey et al. 2007), with 0.03 mag of scatter."""
    stars = draw_stars(20_000, np.random.default_rng(4))
    mag = {b: -2.5 * np.log10(stars[f"flux_{b}_point"]) for b in "gri"}
    near = np.abs(mag["g"] - mag["i"] - 2.5) < 0.02
    r_i = (mag["r"] - mag["i"])[near]
    # Slope 0.9 of the locus times the scatter of g enters r-i at a fixed observed g-i.
    assert abs(r_i.mean() - 1.05) < 0.02
    assert 0.02 < r_i.std() < 0.06
    assert stars["mag_i"].between(18, 24).all()
    # 60 % are M dwarfs of g-i = 2.3 +- 0.4, 40 % turn-off stars of 0.7 +- 0.2.
    assert abs(np.mean(mag["g"] - mag["i"] > 1.4) - 0.6 * 0.988) < 0.02
    assert abs(np.median((mag["g"] - mag["i"])[mag["g"] - mag["i"] < 1.4]) - 0.7) < 0.02


def test_errors_name_what_is_wrong(rng):
    with pytest.raises(ValueError, match=r"`population` must be one of.*got 'odd'"):
        draw_galaxies(1, rng, population="odd")
    with pytest.raises(ValueError, match="`mag_bright` must be below `mag_limit`"):
        draw_galaxies(1, rng, mag_limit=17.0)
    with pytest.raises(ValueError, match="no flux in band 'K'"):
        population.total_flux(draw_stars(1, rng), "K")
