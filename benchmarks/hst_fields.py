"""Real HST/ACS F814W stamps as fields: one NPZ file each, and the table that lists them.

    python benchmarks/hst_fields.py $BLENDEM_DATA/hst_stamps/hst_cosmos_stamps.fits results/hst_fields

Every stamp holds one galaxy of the COSMOS sample of GalSim (Leauthaud et al. 2007; Mandelbaum et
al. 2012), at 0.03 arcsec per pixel and the zero point 25.94 AB. Its noise is that of a drizzled image:
correlated between neighbouring pixels, while the variance written is that of single pixels.
"""

import argparse
from pathlib import Path

import numpy as np
import sep
from astropy.io import fits

from blendem.io.checks import centroid

MAGZERO = 25.94  # counts per second of the stamps, AB
WINDOW = 3.0  # sigma of the window of the centroid [pixel]


def main(stamps: Path, out: Path) -> None:
    """Write all stamps whose centroid is found near their centre."""
    out.mkdir(parents=True, exist_ok=True)
    lines = ["field\tinstrument\tpath\tbands\tmagzero"]
    with fits.open(stamps) as file:
        for row in file["CATALOG"].data:
            number = int(row["ROW"])
            image = np.ascontiguousarray(file[f"GAL{number:03d}"].data, np.float32)
            psf = np.asarray(file[f"PSF{number:03d}"].data, float)
            middle = (np.array(image.shape[::-1]) - 1) / 2
            x, y, flag = sep.winpos(image, *middle[:, None], [WINDOW])
            if flag.any() or np.hypot(x - middle[0], y - middle[1]) > 4 * WINDOW:
                print(f"stamp {number}: no centroid near the centre, left out")
                continue
            # Some PSF images are off centre by a pixel; positions are fitted, so nothing is lost.
            shift = -np.round(centroid(psf)).astype(int)
            psf = np.roll(psf, shift, axis=(0, 1))
            name = f"hst_{number:03d}"
            variance = np.full_like(image, row["NOISE_VARIANCE"])
            np.savez_compressed(
                out / f"{name}.npz",
                images=image[None] - np.float32(row["NOISE_MEAN"]),
                variance=variance[None],
                psfs=psf[None],
                peaks=np.array([[x[0], y[0]]]),
            )
            lines.append(f"{name}\thst_cosmos_30mas\t{name}.npz\tf814w\t{MAGZERO}")
    (out / "fields.tsv").write_text("\n".join(lines) + "\n")
    print(f"{len(lines) - 1} stamps in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stamps", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    main(arguments.stamps, arguments.out)
