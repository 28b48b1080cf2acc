"""A field in tiles: the same blends as without, and all of them once."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from tests.psfex import write_psfex

from blendem.blend import Bucket
from blendem.config import BlendsConfig, DetectConfig, TilesConfig
from blendem.io.fields import FieldRow, InputError, read_observation, write_field
from blendem.io.gather import gather_catalog, place_tile, write_mosaic
from blendem.io.products import read_models, write_catalog, write_images
from blendem.io.regions import write_regions
from blendem.rng import stage_rng
from blendem.survey.extract import Plane, SourceFlag, extract_blends
from blendem.survey.footprints import Footprints
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.simulate import simulate_field
from blendem.survey.tiles import tile_grid

BUCKETS = [{"sources": 4, "size": 48}, {"sources": 4, "size": 64}]
SHAPE = (190, 230)
SIZE = 80
META = {"METHOD": "test", "PRIOR": "none", "CONFIG": "0", "VERSION": "0"}


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A crowded field without a catalog."""
    simulated = simulate_field(
        INSTRUMENTS["hsc_deep"],
        SHAPE,
        rng=stage_rng(3, "test_tiles"),
        mag_limit=24.5,
        density=4.0,
        stamp=33,
    )
    path = tmp_path_factory.mktemp("field") / "patch.fits"
    write_field(
        path,
        image=simulated.image,
        variance=simulated.variance,
        psf=simulated.psf,
        bands=simulated.bands,
        magzero=simulated.magzero,
        wcs=simulated.wcs,
    )
    return FieldRow("patch", "hsc_deep", path)


@pytest.fixture(scope="module")
def tiled(field, script, tmp_path_factory):
    """Its tiles and the table of its sources."""
    folder = tmp_path_factory.mktemp("tiles")
    blends, tiles = BlendsConfig(buckets=BUCKETS), TilesConfig(size=SIZE)
    grid = tile_grid(SHAPE, SIZE, tiles.margin(blends))
    paths = [folder / f"patch.{tile.name}.fits" for tile in grid]
    script("tile_field").main(
        field,
        folder / "patch.fits",
        paths,
        tiles,
        blends,
        DetectConfig(max_sources=4),
        META,
    )
    return folder / "patch.fits", paths


def test_a_cut_out_with_groups_keeps_both(field, script, tmp_path):
    """Groups that a user gives are the blends, and PSFEx knows the whole exposure."""
    seen = read_observation(field)
    whole = (600, 700)  # of the exposure, in which the cut-out begins at (300, 400)
    psf = tuple(write_psfex(tmp_path / f"{b}.psf", whole) for b in seen.bands)
    groups = np.zeros(SHAPE, int)
    groups[60:110, 70:200], groups[150:170, 20:40] = 7, 3
    catalog = Table({"id": [1, 2, 3], "x": [75.0, 190.0, 30.0], "y": [80.0, 90, 160]})
    catalog["group"], catalog["split"] = [7, 7, 3], [0, 0, 1]
    path = tmp_path / "cut.fits"
    write_field(
        path,
        image=seen.image,
        variance=seen.variance,
        psf=seen.psf,
        bands=seen.bands,
        magzero=seen.magzero,
        wcs=seen.wcs,
        catalog=catalog,
        segmentation=groups,
        cards={"TILE_Y": 300, "TILE_X": 400},
    )
    row = FieldRow("cut", "hsc_deep", path, psf=psf)
    blends, tiles = BlendsConfig(buckets=BUCKETS), TilesConfig(size=SIZE)
    grid = tile_grid(SHAPE, SIZE, tiles.margin(blends))
    paths = [tmp_path / f"cut.{tile.name}.fits" for tile in grid]
    detect = DetectConfig(max_sources=4)
    out = tmp_path / "sources.fits"
    script("tile_field").main(row, out, paths, tiles, blends, detect, META)
    table = read_models(out)["IDS"]
    assert table["group"].tolist() == [7, 7, 3] and table["split"].tolist() == [0, 0, 1]
    assert table["tile"][0] == table["tile"][1] != table["tile"][2]
    for tile, part in zip(grid, paths, strict=True):
        y0, _, x0, _ = tile.window
        assert place_tile(part).corner == (y0, x0)
        again = read_observation(FieldRow(part.stem, "hsc_deep", part, psf=psf))
        assert again.psf_model.origin == (300 + y0, 400 + x0)
        inside = groups[
            tile.window[0] : tile.window[1], tile.window[2] : tile.window[3]
        ]
        np.testing.assert_array_equal(again.segmentation, inside)


def cuts_of(row: FieldRow, catalog, footprints=None):
    """Blends by the ids of their sources."""
    seen = read_observation(row)
    plane = Plane(seen.image, seen.variance, seen.psf, seen.wcs, (0, 1, 2, 3, 4), 0.168)
    cuts = extract_blends(
        [plane],
        np.stack([catalog["y"], catalog["x"]], axis=-1),
        np.zeros(len(catalog), bool),
        [Bucket(**bucket) for bucket in BUCKETS],
        group="footprint",
        threshold=3.0,
        max_sources=4,
        margin=4,
        stamp=33,
        magnify=2,
        footprints=footprints,
    )
    ids = np.asarray(catalog["id"])
    return {tuple(ids[cut.members]): cut for cut in cuts}


def test_tiles_have_the_blends_of_the_whole_field(field, tiled):
    sources, paths = tiled
    whole = cuts_of(field, read_models(sources)["IDS"])
    found = {}
    for path in paths:
        part = read_observation(FieldRow(path.stem, "hsc_deep", path))
        catalog = part.catalog
        groups = Footprints(
            np.asarray(catalog["group"], int),
            part.segmentation,
            np.asarray(catalog["split"]) > 0,
        )
        mine = cuts_of(FieldRow(path.stem, "hsc_deep", path), catalog, groups)
        assert not set(mine) & set(found)
        found |= mine
    assert set(found) == set(whole)
    assert len(whole) > 10
    assert max(map(len, whole)) > 2
    for ids, cut in whole.items():
        assert found[ids].flags == cut.flags
        # The detection image of a tile ends at its margin: 1e-5 of the field's.
        for name in ("centers", "is_star", "present"):
            np.testing.assert_allclose(
                getattr(found[ids].blend, name), getattr(cut.blend, name), atol=1e-4
            )
        one, other = (x.blend.observations[0] for x in (found[ids], cut))
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.variance, other.variance)


def test_every_blend_has_a_bucket(field, tiled):
    """Sources further apart than the largest bucket were left without a result."""
    cuts = cuts_of(field, read_models(tiled[0])["IDS"])
    flags = np.array([cut.flags for cut in cuts.values()])
    assert (flags & SourceFlag.TOO_LARGE == 0).all()
    assert (flags & SourceFlag.SPLIT > 0).any()


@pytest.fixture
def products(tiled, tmp_path):
    """A catalog and a model for every tile, with numbers that tell where they come from."""
    catalogs, models = [], []
    for number, path in enumerate(tiled[1]):
        part = Table.read(path, "CATALOG")
        table = part["id", "x", "y", "type"]
        table["blend"], table["size"] = part["group"] % 3, 0.5
        table["flags"], table["n_samples"] = np.where(part["split"], 1, 0), 8
        catalogs.append(tmp_path / f"catalog_{path.name}")
        write_catalog(catalogs[-1], table, META)
        shape = fits.getheader(path, "SCI")
        pixels = (5, shape["NAXIS2"], shape["NAXIS1"])
        models.append(tmp_path / f"model_{path.name}")
        image = np.full(pixels, 1.0 + number, np.float32)
        images = {"MODEL": (image, "", "grizy")}
        write_images(models[-1], images, sources=table["id",], meta=META)
    return catalogs, models


def test_what_is_gathered_is_complete(field, tiled, products, tmp_path):
    sources, paths = tiled
    table, cards = gather_catalog(sources, paths, products[0])
    known = read_models(sources)["IDS"]
    known.sort("id")
    assert cards["METHOD"] == "test"
    assert table["id"].tolist() == known["id"].tolist()
    for axis in "xy":
        np.testing.assert_allclose(table[axis], known[axis])
    assert table["tile"].tolist() == known["tile"].tolist()
    # Blends of two tiles have no number in common.
    pairs = set(zip(table["tile"].tolist(), table["blend"].tolist(), strict=True))
    assert len(pairs) == len(set(table["blend"].tolist()))
    with pytest.raises(InputError, match="in no tile"):
        gather_catalog(sources, paths[:-1], products[0][:-1])
    with pytest.raises(InputError, match="in several"):
        gather_catalog(sources, [*paths, paths[0]], [*products[0], products[0][0]])

    write_regions(tmp_path / "patch.reg", table, 0.168)
    lines = (tmp_path / "patch.reg").read_text().splitlines()
    assert len(lines) == 2 + len(table)
    x, y, radius = map(float, lines[2].split("(")[1].split(")")[0].split(","))
    assert x - 1 == pytest.approx(table["x"][0], abs=1e-3)
    assert y - 1 == pytest.approx(table["y"][0], abs=1e-3)
    assert radius == pytest.approx(2 * 0.5 / 0.168, abs=0.01)
    assert ("color=red" in lines[2]) == (table["flags"][0] > 0)

    path = tmp_path / "mosaic.fits"
    write_mosaic(path, field, paths, products[1], table["id",], META)
    made, seen = read_models(path), read_observation(field)
    expected = np.zeros((5, *SHAPE))
    for number, tile in enumerate(tile_grid(SHAPE, SIZE, 80)):
        y0, y1, x0, x1 = tile.window
        expected[:, y0:y1, x0:x1] += 1 + number
    np.testing.assert_allclose(made["MODEL"], expected)
    np.testing.assert_allclose(made["RESIDUAL"], seen.image - expected, atol=1e-5)
