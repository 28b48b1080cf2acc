"""Sources as sums of components, and a scene as a tuple of sources."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from blendem.morphology import AbstractProfile, PixelMorphology
from blendem.renderer import Renderer
from blendem.spectrum import Spectrum


class Component(eqx.Module):
    """A spectrum times a unit-flux morphology, or free multi-band pixels.

    Attributes:
        morphology: A closed-form profile, or `PixelMorphology` (which has its own flux in
            every band).
        spectrum: Flux per model band; multiplies free pixels too (use ones there).
    """

    morphology: AbstractProfile | PixelMorphology
    spectrum: Spectrum


class Source(eqx.Module):
    """A galaxy or a star: components that share one centre.

    Attributes:
        center: Model pixel (y, x), shape `(2,)`.
        components: One or more components.
    """

    center: Float[Array, " 2"]
    components: tuple[Component, ...]


class Scene(eqx.Module):
    """All sources of a blend.

    Attributes:
        sources: The sources, in catalog order.
    """

    sources: tuple[Source, ...]


def render_source(
    source: Source, renderer: Renderer
) -> Float[Array, "band height width"]:
    """Image of one source in the bands and on the pixels of an observation."""
    bands = jnp.asarray(renderer.band_index)
    profiles = None
    image = jnp.zeros((len(renderer.band_index), *renderer.shape), source.center.dtype)
    ky, kx = renderer.model_frequencies()
    for component in source.components:
        flux = component.spectrum.flux[bands]
        if isinstance(component.morphology, PixelMorphology):
            stamps = component.morphology.image[bands] * flux[:, None, None]
            image = image + renderer.render_stamps(stamps, source.center)
        else:
            shape = component.morphology.fourier(ky, kx)
            term = flux[:, None, None] * shape[None]
            profiles = term if profiles is None else profiles + term
    if profiles is not None:
        phase = renderer.phase(source.center)[None]
        image = image + renderer.render_fourier(profiles * renderer.psf_fourier * phase)
    return image


def render_scene(scene: Scene, renderer: Renderer) -> Float[Array, "band height width"]:
    """Image of all sources; linear in every flux and in every free pixel."""
    images = [render_source(source, renderer) for source in scene.sources]
    return sum(images[1:], images[0])
