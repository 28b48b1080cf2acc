"""A simulated HSC-deep-like patch as a user would give it: FITS without a catalog, and its truth.

    python benchmarks/field_images.py results/field_images --side 4000

Writes `patch.fits`, `fields.tsv` for `fields:` of a configuration, and `truth.csv` (one row per
galaxy or star down to `--mag-limit`). Most of the time goes to GalSim, about 60 ms per source.
"""

import argparse
from pathlib import Path

import numpy as np

from blendem.io.atomic import atomic_path
from blendem.io.fields import write_field
from blendem.rng import stage_rng
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.simulate import simulate_field


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=4000, help="of the patch [pixel]")
    parser.add_argument("--mag-limit", type=float, default=26.2, help="faintest [i]")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    field = simulate_field(
        INSTRUMENTS["hsc_deep"],
        (given.side, given.side),
        rng=stage_rng(given.seed, "field_images"),
        mag_limit=given.mag_limit,
        observed_size=81,
    )
    given.folder.mkdir(parents=True, exist_ok=True)
    write_field(
        given.folder / "patch.fits",
        image=field.image,
        variance=field.variance,
        psf=field.psf,
        bands=field.bands,
        magzero=field.magzero,
        wcs=field.wcs,
    )
    with atomic_path(given.folder / "truth.csv") as temporary:
        table = field.truth.to_pandas()
        table.loc[:, [c for c in table if table[c].dtype != object]].assign(
            type=np.asarray(field.truth["type"])
        ).to_csv(temporary, index=False)
    with atomic_path(given.folder / "fields.tsv") as temporary:
        temporary.write_text("field\tinstrument\tpath\npatch\thsc_deep\tpatch.fits\n")
    print(f"{given.folder}: {len(table)} sources on {given.side} x {given.side} pixels")


if __name__ == "__main__":
    main()
