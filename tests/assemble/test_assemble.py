"""From posteriors of a chunk to what is written: sources, their images, tables of blends."""

import equinox as eqx
import numpy as np
import pytest
from tests.inference.test_em import D, make_basis

from blendem.assemble.blends import blend_table, finish_catalog
from blendem.assemble.observed import (
    OBSERVED_MARGIN,
    _apart,
    in_bands,
    mosaic_of,
    observe,
    observed_side,
    on_one_side,
    smallest_scale,
)
from blendem.assemble.sources import measure_sources
from blendem.blend import pad_observation, pad_sources, stack
from blendem.config import InferConfig
from blendem.inference.draws import DIAGNOSTICS
from blendem.inference.statistics import STAR_SPREAD
from blendem.io.blends import BlendSet
from blendem.measure.sources import point_image
from blendem.survey.extract import SourceFlag

SIZE, SIGMA, DRAWS = 24, 0.7, 32
CORNERS = ((100, 50), (10, 20))
SCALE = np.array([[40.0, 25.0], [30.0, 0.0]])
# Pixel centres, so that an observation with the PSF of the model sees model images themselves.
CENTERS = [np.array([[8.0, 9.0], [10.0, 11.0]]), np.array([[11.0, 12.0]])]


@pytest.fixture
def basis(rng):
    return make_basis(rng)


@pytest.fixture
def data():
    """A galaxy beside a star; a galaxy alone; a galaxy that is in no blend."""
    psf = point_image(11, SIGMA)[None]
    made = []
    for centers, star in zip(CENTERS, ([False, True], [False]), strict=True):
        observation = pad_observation(
            np.zeros((1, SIZE, SIZE)),
            np.ones((1, SIZE, SIZE)),
            psf,
            size=SIZE,
            jacobian=np.eye(2),
            offset=np.zeros(2),
            band_index=(0,),
            same_grid=True,
        )
        made.append(pad_sources((observation,), centers, np.array(star), 2))
    sources = {
        "id": np.array([3, 4, 5, 6]),
        "field": np.array(["a"] * 4),
        "type": np.array(["galaxy", "star", "galaxy", "galaxy"]),
        "blend": np.array([0, 0, 1, 2]),
        "slot": np.array([0, 1, 0, 0]),
        "flags": np.array([0, 0, 0, int(SourceFlag.TOO_LARGE)]),
    }
    sources |= {name: np.zeros(4) for name in ("x", "y", "ra", "dec")}
    blends = {
        "field": np.array(["a"] * 3),
        "number": np.arange(3),
        "stack": np.array([0, 0, -1]),
        "index": np.array([0, 1, 0]),
        "corner_y": np.array([CORNERS[0][0], CORNERS[1][0], 0]),
        "corner_x": np.array([CORNERS[0][1], CORNERS[1][1], 0]),
        "n_sources": np.array([2, 1, 1]),
        "flags": np.zeros(3, int),
    }
    fields = {"a": {"magzero": 27.0}}
    return BlendSet([stack(made, 2)], sources, blends, fields, {"bands": ["i"]})


@pytest.fixture
def products(rng):
    """Statistics and posteriors as their rules write them."""
    centers = np.zeros((2, 2, 2))
    centers[0], centers[1, 0] = CENTERS[0], CENTERS[1][0]
    stats = {
        "stack_0": {"scale": SCALE, "centers": centers},
        "in_em": np.array([True, True, False]),
    }
    mean = 0.1 * rng.standard_normal((4, D))
    mean[3] = np.nan
    noise = 0.05 * rng.standard_normal((DRAWS, 4, D))
    summary = ("chi2", "n_data", "effective", "log_evidence", "chi2_draws")
    names = (*summary, "negative_flux", *DIAGNOSTICS)
    blends = {name: np.zeros(3) for name in names}
    blends["chi2"], blends["n_data"] = np.array([2e3, 6e2, 0]), np.full(3, 576.0)
    post = {
        "mean": mean,
        "z": mean + noise - noise.mean(axis=0),
        "shift": np.zeros((4, 2)),
        "sky": np.zeros((3, 0)),
        "offset": np.zeros((3, 0, 2)),
        "offset_sd": np.zeros((3, 0, 2)),
        "blends": blends,
    }
    return stats, post


@pytest.fixture
def assembled(data, basis, products):
    stats, post = products
    infer = InferConfig(reference_band="i", recentre=False)
    sources = measure_sources(data, basis, stats, post, infer, {"a": []})
    return sources, observe(data, basis, sources, post, batch=2)


def test_images_are_those_of_the_coordinates(assembled, basis, products):
    sources, _ = assembled
    z = products[1]["mean"]
    for k, scale in ((0, SCALE[0, 0]), (2, SCALE[1, 0])):
        expected = scale * (basis.mean + np.tensordot(z[k], basis.modes, 1))
        np.testing.assert_allclose(sources.mean[k], expected, rtol=1e-4, atol=1e-5)
        flux = sources.columns["flux_i"][k]
        assert flux == pytest.approx(expected.sum(), rel=1e-5)
        assert sources.flux[:, k, 0].mean() == pytest.approx(flux, rel=1e-4)
    star = SCALE[0, 1] * (1 + STAR_SPREAD * z[1, 0])
    assert sources.columns["flux_i"][1] == pytest.approx(star, rel=1e-5)
    assert np.isnan(sources.columns["size"][1]) and sources.columns["size"][0] > 0


def test_a_source_without_a_result_has_a_flag_and_nothing_else(assembled):
    sources, observed = assembled
    assert sources.mean[3] is None and observed.mean[3] is None
    assert observed.totals[2] is None
    assert np.isnan(sources.columns["flux_i"][3])
    # It was too large for all stamps: that it failed says nothing more.
    assert sources.columns["flags"][3] == SourceFlag.TOO_LARGE
    assert sources.columns["n_samples"].tolist() == [DRAWS, DRAWS, DRAWS, 0]


def test_a_blend_that_failed_is_flagged(data, basis, products):
    stats, post = products
    post["mean"][2] = np.nan
    infer = InferConfig(reference_band="i", recentre=False)
    sources = measure_sources(data, basis, stats, post, infer, {"a": []})
    assert sources.columns["flags"][2] & SourceFlag.FAILED
    assert observe(data, basis, sources, post, batch=2).totals[1] is None


def test_observations_see_the_model_where_it_is(assembled, data, basis):
    sources, observed = assembled
    half = basis.mean.shape[-1] // 2
    total = observed.totals[0][0]
    assert total.shape == (1, SIZE, SIZE)
    np.testing.assert_allclose(total, observed.sources[0].sum(axis=0), atol=1e-5)
    # The PSF is the model's: the galaxy alone is its model image about its centre.
    alone, (y, x) = observed.sources[0][0], CENTERS[0][0].astype(int)
    seen = alone[:, y - half : y + half + 1, x - half : x + half + 1]
    np.testing.assert_allclose(seen, sources.mean[0], atol=0.02 * seen.max())
    # The window of each source has its middle at its place in the field.
    assert observed.middle[0].tolist() == [100 + y, 50 + x]
    window = observed.mean[0]
    middle = window.shape[-1] // 2
    np.testing.assert_allclose(
        window[:, middle - half : middle + half + 1, middle - half : middle + half + 1],
        seen,
        atol=1e-6,
    )
    assert observed.std[0].max() > 0 and observed.std[0].shape == window.shape


def test_catalog_and_tables_of_blends(assembled, data, products):
    sources, observed = assembled
    finish_catalog(data, sources, observed, products[1])
    columns = sources.columns
    np.testing.assert_allclose(columns["y"][:3], [108, 110, 21], atol=1e-5)
    np.testing.assert_allclose(columns["x"][:3], [59, 61, 32], atol=1e-5)
    assert columns["blendedness_i"][0] > 0.01
    assert abs(columns["blendedness_i"][2]) < 1e-6
    # 2000 is more than 1.5 times what 576 pixels should have, 600 is not.
    bad = (columns["flags"] & SourceFlag.BAD_FIT) > 0
    assert bad.tolist() == [True, True, False, False]
    table, seen = blend_table(
        data, observed, products[0], products[1], {"a": ["hsc_deep"]}
    )
    assert table["in_em"].tolist() == [True, True, False]
    np.testing.assert_array_equal(table["expected_chi2"], [576, 576, np.nan])
    # The data are zero: what is left is the model.
    expected = [np.sum(observed.totals[row][0] ** 2) for row in (0, 1)]
    np.testing.assert_allclose(table["chi2_i"][:2], expected, rtol=1e-5)
    np.testing.assert_allclose(seen["chi2"], expected, rtol=1e-5)
    assert seen["instrument"].tolist() == ["hsc_deep"] * 2


def test_models_are_put_where_their_blends_are(assembled, data):
    _, observed = assembled
    twice = [total and [*total, 2 * total[0]] for total in observed.totals]
    cuts = [b.observations for b in (data.blend(0), data.blend(1))]
    assert all(len(cut) == 1 for cut in cuts)
    image = mosaic_of(data, "a", twice, 0, (1, 150, 90), None, None)
    for row, (y, x) in enumerate(CORNERS):
        np.testing.assert_array_equal(
            image[:, y : y + SIZE, x : x + SIZE], observed.totals[row][0]
        )
    assert image.sum() == pytest.approx(
        sum(observed.totals[row][0].sum() for row in (0, 1)), rel=1e-5
    )


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 41), (0.3, 137), (3.0, 15)])
def test_a_window_holds_the_stamp(scale, expected):
    side = observed_side(41, scale)
    assert side == expected + OBSERVED_MARGIN
    assert side % 2 == 1 and (side - OBSERVED_MARGIN) * scale >= 41


def test_scale_of_the_finest_observation(data):
    assert smallest_scale(data) == pytest.approx(1.0)
    assert smallest_scale(BlendSet([], {}, {}, {}, {})) == 1.0


def test_images_of_one_side_and_absent_bands():
    images = on_one_side([np.ones((2, 3, 3)), None], 5, 2)
    assert images.shape == (2, 2, 5, 5) and np.isnan(images[1]).all()
    assert images[0].sum() == 18 and images[0, 0, 0, 0] == 0
    planes = in_bands(np.ones((1, 2, 2)), [1], 3, np.inf)
    assert np.isinf(planes[[0, 2]]).all() and (planes[1] == 1).all()


def test_offsets_of_blends_without_a_result_are_not_looked_for(data):
    """The widest blend of a chunk may be the one that failed."""
    stack = data.stacks[0]
    observations = stack.observations * 3
    three = eqx.tree_at(lambda b: b.observations, stack, observations)
    moved = np.full((2, 1, 2), 0.5)
    alone = _apart(three, moved)
    offsets = [np.asarray(one.observations[0].offset) for one in alone]
    np.testing.assert_allclose(offsets[0], 0)
    np.testing.assert_allclose(offsets[1], -0.5)
    np.testing.assert_allclose(offsets[2], 0)
