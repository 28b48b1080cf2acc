"""One gradient of the joint likelihood of HST and HSC on their own pixels, beside scarlet2.

    make benchmark-joint

Reads the pair of `BLENDEM_DATA` (HST 250 x 250 pixels of 0.03 arcsec, HSC 5 x 50 x 50 of 0.168),
takes the brightest sources that sep finds in the HST image, and times in one process the gradient of
the log likelihood by all stamps (blendem) and by all spectra and morphologies (scarlet2 and
its resampling renderer), model grid and sources the same. The gradient of blendem is also compared
with that of double precision, source by source. Writes `results/multi/gradient.json`.
"""

import argparse
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import sep
from hst_hsc_fields import read_pair
from records import Report

from blendem.frame import affine_between
from blendem.inference.scene_operator import SceneOperator
from blendem.observation import Observation, Sampling
from blendem.renderer import Renderer

BANDS = ("g", "r", "i", "z", "y", "f814w")
STAMP, WIDE, PSF_SIGMA, REPEATS = 61, 301, 0.7, 5  # model pixels


def flat_pair(folder: Path) -> dict:
    """The pair with the sky of every image taken off, and the noise of its pixels."""
    pair = read_pair(folder)
    for one in pair.values():
        image = one["image"] - np.median(one["image"], axis=(1, 2), keepdims=True)
        one["image"] = image
        one["sigma"] = 1.4826 * np.median(np.abs(image), axis=(1, 2))
    return pair


def observations_of(pair: dict, dtype) -> tuple[Observation, ...]:
    """HST, whose pixels are those of the model, and HSC."""
    found = []
    for name, index in (("HST", (5,)), ("HSC", (0, 1, 2, 3, 4))):
        one = pair[name]
        shape = one["image"].shape
        middle = (np.array(shape[1:]) - 1) / 2
        jacobian, offset = affine_between(one["wcs"], pair["HST"]["wcs"], tuple(middle))
        same = name == "HST"
        found.append(
            Observation(
                jnp.asarray(one["image"], dtype),
                jnp.asarray(
                    np.broadcast_to(one["sigma"][:, None, None] ** 2, shape), dtype
                ),
                jnp.asarray(one["psf"], dtype),
                jnp.asarray(np.eye(2) if same else jacobian, dtype),
                jnp.asarray(np.zeros(2) if same else offset, dtype),
                index,
                same,
                Sampling() if same else Sampling.of(jacobian),
            )
        )
    return tuple(found)


def find_sources(pair: dict, n: int) -> np.ndarray:
    """Centres (y, x) of the brightest sources in the HST image."""
    image = np.ascontiguousarray(pair["HST"]["image"][0])
    found = sep.extract(
        image, 1.0, err=pair["HST"]["sigma"][0], minarea=5, deblend_cont=1e-4
    )
    found = found[np.argsort(found["flux"])[::-1]][:n]
    if len(found) < n:
        raise SystemExit(f"only {len(found)} sources are found; lower --sources")
    return np.stack([found["y"], found["x"]], axis=-1)


def timed(program, *arguments) -> tuple[float, float]:
    """Seconds of the first call, and of the fastest of some later ones."""
    begin = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    first = time.perf_counter() - begin
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - begin)
    return first, min(seconds)


def loss_of(render, observations):
    """Half of chi2 as a function of stamps."""

    def loss(x):
        return 0.5 * sum(
            jnp.sum(o.whitening(o.image - image) ** 2)
            for o, image in zip(observations, render(x), strict=True)
        )

    return loss


def one_by_one(observations, centers):
    """The reference: every source by itself, on a stamp that holds the PSF of HSC."""
    pad = (WIDE - STAMP) // 2
    renderers = [Renderer.of(o, WIDE, jnp.array(PSF_SIGMA)) for o in observations]

    def render(x):
        x = jnp.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
        return tuple(
            sum(
                r.render_stamps(x[k][jnp.asarray(r.band_index)], jnp.asarray(c))
                for k, c in enumerate(centers)
            )
            for r in renderers
        )

    return render


def scarlet2_gradient(pair: dict, centers: np.ndarray, stamps: np.ndarray):
    """Gradient of scarlet2's joint likelihood by everything in its scene."""
    import scarlet2

    scarlet2.set_validation(False)
    observed = [
        scarlet2.Observation(
            jnp.asarray(pair[name]["image"], jnp.float32),
            jnp.asarray(
                np.broadcast_to(
                    pair[name]["sigma"][:, None, None] ** -2.0,
                    pair[name]["image"].shape,
                ),
                jnp.float32,
            ),
            psf=scarlet2.ArrayPSF(jnp.asarray(pair[name]["psf"], jnp.float32)),
            wcs=pair[name]["wcs"],
            channels=list(channels),
        )
        for name, channels in (("HSC", BANDS[:5]), ("HST", BANDS[5:]))
    ]
    frame = scarlet2.Frame.from_observations(
        observed, model_psf=scarlet2.GaussianPSF(PSF_SIGMA), coverage="intersection"
    )
    for one in observed:
        one.match(frame)
    with scarlet2.Scene(frame) as scene:
        for center, stamp in zip(centers, stamps, strict=True):
            scarlet2.Source(
                jnp.asarray(center, jnp.float32),
                jnp.asarray(stamp.sum((1, 2)), jnp.float32),
                jnp.asarray(stamp[-1] / stamp[-1].sum(), jnp.float32),
            )

    @eqx.filter_jit
    def gradient(scene):
        return eqx.filter_grad(
            lambda s: -sum(one.log_likelihood(s()) for one in observed)
        )(scene)

    return gradient, scene, tuple(frame.bbox.shape)


def main(folder: Path, sources: int, out: Path, peer: bool) -> None:
    """Time both, compare, print and write."""
    pair = flat_pair(folder)
    centers = find_sources(pair, sources)
    r = np.arange(STAMP) - STAMP // 2
    rng = np.random.default_rng(1)
    widths, fluxes = (
        rng.uniform(2, 6, len(centers)),
        rng.uniform(0.5, 2, (len(centers), 6)),
    )
    round_ = np.exp(
        -(r[:, None] ** 2 + r[None] ** 2) / (2 * widths[:, None, None] ** 2)
    )
    round_ /= round_.sum((1, 2), keepdims=True)
    stamps = fluxes[:, :, None, None] * round_[:, None]
    single = observations_of(pair, jnp.float32)
    operator = SceneOperator.of(single, STAMP, PSF_SIGMA, centers)
    gradient = jax.jit(jax.grad(loss_of(operator, single)))
    first, seconds = timed(gradient, jnp.asarray(stamps, jnp.float32))
    report = Report("make benchmark-joint")

    def say(name, value, unit, expected="") -> None:
        report.say(name, value, unit, len(centers), expected)

    say("blendem: one gradient", seconds, "s")
    say("blendem: compilation and one gradient", first, "s")
    if peer:
        other, scene, shape = scarlet2_gradient(pair, centers, stamps)
        print(f"scarlet2 model frame {shape}")
        first, slow = timed(other, scene)
        say("scarlet2: one gradient", slow, "s")
        say("scarlet2: compilation and one gradient", first, "s")
        say("scarlet2 over blendem, one gradient", slow / seconds, "1", ">= 50")
    with jax.enable_x64(True):
        double = observations_of(pair, jnp.float64)
        reference = jax.grad(loss_of(one_by_one(double, centers), double))
        expected = np.asarray(jax.jit(reference)(jnp.asarray(stamps, jnp.float64)))
    found = np.asarray(gradient(jnp.asarray(stamps, jnp.float32)))
    say(
        "blendem: gradient minus that of double precision, rms over rms",
        np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)),
        "1",
        "<= 1e-3",
    )
    report.write(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("BLENDEM_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=data / "hst_hsc_pair")
    parser.add_argument("--sources", type=int, default=26)
    parser.add_argument("--out", type=Path, default=Path("results/multi/gradient.json"))
    parser.add_argument("--alone", action="store_true", help="without scarlet2")
    arguments = parser.parse_args()
    main(arguments.data, arguments.sources, arguments.out, not arguments.alone)
