"""Local linear maps between pixel grids against astropy's own transforms."""

import numpy as np
import pytest
from astropy.wcs import WCS, Sip

from blendem.frame import Frame, affine_between, local_cd

SCALE = 0.168  # [arcsec]


def rotated(degrees, scale=SCALE, crpix=(50.0, 40.0), sip=False):
    """A tangent-plane WCS whose y axis points `degrees` east of north, x to the west."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = crpix, [150.1, 2.2]
    wcs.wcs.cd = scale / 3600 * np.array([[-c, s], [s, c]])
    suffix = "-SIP" if sip else ""
    wcs.wcs.ctype = ["RA---TAN" + suffix, "DEC--TAN" + suffix]
    if sip:
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[1, 1] = 2e-4, 1e-4
        wcs.sip = Sip(a, b, None, None, crpix)
    wcs.wcs.set()
    return wcs


def test_local_cd_at_the_reference_pixel_is_the_cd_matrix():
    wcs = rotated(30.0)
    x, y = wcs.wcs.crpix - 1
    # CD is (east, north) per (x, y); the frame keeps (north, east) per (y, x).
    expected = wcs.wcs.cd[::-1, ::-1] * 3600
    np.testing.assert_allclose(local_cd(wcs, (y, x)), expected, rtol=1e-7)
    assert expected[0, 0] != pytest.approx(expected[1, 0])  # an axis swap is seen
    frame = Frame(("g",), 5, 0.7, local_cd(wcs, (y, x)))
    assert float(frame.pixel_scale) == pytest.approx(SCALE, rel=1e-7)


def test_local_cd_follows_sip_distortion():
    wcs = rotated(20.0, sip=True)
    x0, y0 = wcs.wcs.crpix - 1
    u, v = 12.0, -7.0
    # x' = u + 2e-4 u^2, y' = v + 1e-4 u v, differentiated by hand.
    slope = np.array([[1 + 4e-4 * u, 0.0], [1e-4 * v, 1 + 1e-4 * u]])
    expected = (wcs.wcs.cd @ slope)[::-1, ::-1] * 3600
    # The tangent plane at the pixel turns by 2e-7 against that of the reference pixel.
    np.testing.assert_allclose(
        local_cd(wcs, (y0 + v, x0 + u)), expected, atol=1e-6 * SCALE
    )


def test_affine_map_agrees_with_the_sky():
    observed = rotated(25.0, 0.2, (30.0, 35.0), sip=True)
    model = rotated(-10.0)
    position = (36.0, 25.0)
    jacobian, offset = affine_between(observed, model, position)
    away = [(0, 0), (2, 0), (-1, 2), (2, -2)]
    for dy, dx in away:
        y, x = position[0] + dy, position[1] + dx
        sky = observed.all_pix2world([[x, y]], 0)
        truth = model.all_world2pix(sky, 0)[0][::-1]
        # SIP: the linear map errs by 2e-4 * 2^2 pixel at 2 pixels away.
        error = jacobian @ [y, x] + offset - truth
        assert np.abs(error).max() < 1e-3 * max(1, dx**2 / 4 + abs(dx * dy) / 4)
    plain = rotated(25.0, 0.2, (30.0, 35.0))
    jacobian, offset = affine_between(plain, model, position)
    for y, x in [(0.0, 0.0), (60.0, 0.0), (0.0, 60.0), (60.0, 60.0)]:
        truth = model.all_world2pix(plain.all_pix2world([[x, y]], 0), 0)[0][::-1]
        np.testing.assert_allclose(jacobian @ [y, x] + offset, truth, atol=1e-3)


def test_same_grid_is_the_identity_and_half_a_wcs_is_an_error():
    jacobian, offset = affine_between(None, None, (3.0, 4.0))
    np.testing.assert_array_equal(jacobian, np.eye(2))
    np.testing.assert_array_equal(offset, np.zeros(2))
    for pair in [(rotated(0.0), None), (None, rotated(0.0))]:
        with pytest.raises(ValueError, match="has a WCS and another has none"):
            affine_between(*pair, (3.0, 4.0))


def test_wcs_without_sky_and_bad_frames_are_named():
    with pytest.raises(ValueError, match="no celestial axes"):
        local_cd(WCS(naxis=2), (0.0, 0.0))
    with pytest.raises(ValueError, match="odd"):
        Frame(("g",), 4, 0.7, np.eye(2))
    for bands in ((), ("g", "g")):
        with pytest.raises(ValueError, match="bands"):
            Frame(bands, 5, 0.7, np.eye(2))
