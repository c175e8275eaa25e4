"""GCJ-02 and distances, against published offsets and hand-computed metres."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reference.geo import Boundaries, gcj02_to_wgs84, metres_per_degree, wgs84_to_gcj02

LON = st.floats(111.98, 113.25)
LAT = st.floats(21.45, 22.86)


def metres_between(lon1: float, lat1: float, lon2: float, lat2: float) -> float:
    """Great-circle distance, an independent formula."""
    radius = 6_371_000.0
    p1, p2 = np.radians(lat1), np.radians(lat2)
    a = np.sin((p2 - p1) / 2) ** 2 + np.cos(p1) * np.cos(p2) * np.sin(np.radians(lon2 - lon1) / 2) ** 2
    return float(2 * radius * np.arcsin(np.sqrt(a)))


@pytest.mark.parametrize(
    ("wgs", "gcj"),
    [  # pairs of the eviltransform project's own tests
        ((121.4375186, 31.1774276), (121.4419, 31.17530)),
        ((113.9490172, 22.5429276), (113.9538, 22.54002)),
        ((116.3774467, 39.9113386), (116.3837, 39.91270)),
    ],
)
def test_published_offsets(wgs: tuple[float, float], gcj: tuple[float, float]) -> None:
    lon, lat = wgs84_to_gcj02(np.array([wgs[0]]), np.array([wgs[1]]))
    assert metres_between(lon[0], lat[0], *gcj) < 60
    assert 300 < metres_between(*wgs, lon[0], lat[0]) < 800


@given(lon=LON, lat=LAT)
def test_inverse_is_exact_to_a_centimetre_in_the_city(lon: float, lat: float) -> None:
    there = wgs84_to_gcj02(np.array([lon]), np.array([lat]))
    back_lon, back_lat = gcj02_to_wgs84(*there)
    assert metres_between(lon, lat, back_lon[0], back_lat[0]) < 0.01
    assert 400 < metres_between(lon, lat, there[0][0], there[1][0]) < 800


def test_metres_per_degree_agree_with_the_sphere() -> None:
    east, north = metres_per_degree(np.array([22.5]))
    assert east[0] == pytest.approx(metres_between(113, 22.5, 114, 22.5), rel=0.004)
    assert north[0] == pytest.approx(metres_between(113, 22, 113, 23), rel=0.006)


def test_distance_is_zero_inside_and_metres_outside() -> None:
    square = "POLYGON((113.0 22.5, 113.01 22.5, 113.01 22.51, 113.0 22.51, 113.0 22.5))"
    boundaries = Boundaries(np.array([square, None], dtype=object))
    lon = np.array([113.005, 113.0, 113.012, 113.005, np.nan, 113.005])
    lat = np.array([22.505, 22.5, 22.505, 22.49, 22.505, 22.505])
    which = np.array([0, 0, 0, 0, 0, 1])
    distance = boundaries.distance_m(which, lon, lat)
    assert distance[:2].tolist() == [0.0, 0.0]
    assert distance[2] == pytest.approx(metres_between(113.01, 22.505, 113.012, 22.505), rel=0.005)
    assert distance[3] == pytest.approx(metres_between(113.005, 22.5, 113.005, 22.49), rel=0.007)
    assert np.isnan(distance[4:]).all()


def test_concave_and_multi_polygons() -> None:
    shape = (
        "MULTIPOLYGON(((113 22, 113.02 22, 113.02 22.02, 113.01 22.01, 113 22.02, 113 22)),"
        "((113.1 22, 113.11 22, 113.11 22.01, 113.1 22)))"
    )
    boundaries = Boundaries(np.array([shape], dtype=object))
    # in the notch of the first part (over 100 m from both sides), and inside the second
    distance = boundaries.distance_m(
        np.array([0, 0]), np.array([113.01, 113.109]), np.array([22.018, 22.005])
    )
    assert distance[0] > 100
    assert distance[1] == 0
