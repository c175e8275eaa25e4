"""Coordinates: GCJ-02 to WGS84, and distances in metres from points to grid polygons."""

from __future__ import annotations

from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Krasovsky 1940, the ellipsoid that the GCJ-02 offset is defined on.
_SEMI_MAJOR_M: Final = 6_378_245.0
_ECCENTRICITY_2: Final = 0.00669342162296594323
#: The offset changes so slowly that two rounds leave less than a centimetre.
_ROUNDS: Final = 2


def gcj02_offset(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """What GCJ-02 adds to WGS84 degrees `lon`, `lat` (n,): hundreds of metres, in degrees.

    Valid inside mainland China. Source: the published eviltransform formula.
    """
    x, y = lon - 105.0, lat - 35.0
    root = np.sqrt(np.abs(x))
    ripple = (20.0 * np.sin(6.0 * np.pi * x) + 20.0 * np.sin(2.0 * np.pi * x)) * 2.0 / 3.0
    d_lat = -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * root + ripple
    d_lat += (20.0 * np.sin(np.pi * y) + 40.0 * np.sin(np.pi / 3.0 * y)) * 2.0 / 3.0
    d_lat += (160.0 * np.sin(np.pi / 12.0 * y) + 320.0 * np.sin(np.pi / 30.0 * y)) * 2.0 / 3.0
    d_lon = 300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * root + ripple
    d_lon += (20.0 * np.sin(np.pi * x) + 40.0 * np.sin(np.pi / 3.0 * x)) * 2.0 / 3.0
    d_lon += (150.0 * np.sin(np.pi / 12.0 * x) + 300.0 * np.sin(np.pi / 30.0 * x)) * 2.0 / 3.0
    radians = np.radians(lat)
    magic = 1.0 - _ECCENTRICITY_2 * np.sin(radians) ** 2
    root_magic = np.sqrt(magic)
    meridian = _SEMI_MAJOR_M * (1.0 - _ECCENTRICITY_2) / (magic * root_magic)
    normal = _SEMI_MAJOR_M / root_magic * np.cos(radians)
    return np.degrees(d_lon / normal), np.degrees(d_lat / meridian)


def wgs84_to_gcj02(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """WGS84 degrees (n,) to GCJ-02 degrees."""
    d_lon, d_lat = gcj02_offset(lon, lat)
    return lon + d_lon, lat + d_lat


def gcj02_to_wgs84(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """GCJ-02 degrees (n,) to WGS84 degrees, by fixed-point iteration of the forward formula."""
    wgs_lon, wgs_lat = lon, lat
    for _ in range(_ROUNDS):
        d_lon, d_lat = gcj02_offset(wgs_lon, wgs_lat)
        wgs_lon, wgs_lat = lon - d_lon, lat - d_lat
    return wgs_lon, wgs_lat


def metres_per_degree(lat: Floats) -> tuple[Floats, Floats]:
    """Metres per degree of longitude and of latitude at `lat` (n,), WGS84 ellipsoid."""
    phi = np.radians(lat)
    east = 111_412.84 * np.cos(phi) - 93.5 * np.cos(3 * phi) + 0.118 * np.cos(5 * phi)
    north = 111_132.92 - 559.82 * np.cos(2 * phi) + 1.175 * np.cos(4 * phi)
    return east, north


class Boundaries:
    """Polygons in a plane of metres each, so that a distance is a distance.

    A grid measures a few hundred metres to some kilometres: around its own centre the earth is flat enough
    (below 0.1 % of a distance of 50 km).
    """

    def __init__(self, wkt: NDArray[np.object_]) -> None:
        """wkt : (k,) WKT polygons in WGS84 degrees, None where a version has no boundary."""
        shapes = shapely.from_wkt(wkt, on_invalid="ignore")
        self.known: NDArray[np.bool_] = ~shapely.is_missing(shapes)
        centres = shapely.centroid(shapes)
        self._lon0 = np.nan_to_num(shapely.get_x(centres))
        self._lat0 = np.nan_to_num(shapely.get_y(centres))
        self._east, self._north = metres_per_degree(self._lat0)
        self._shapes = shapes
        if len(shapes):
            points, owner = shapely.get_coordinates(shapes, return_index=True)
            x, y = self._project(owner, points[:, 0], points[:, 1])
            self._shapes = shapely.set_coordinates(shapes, np.column_stack([x, y]))
            shapely.prepare(self._shapes)

    def distance_m(self, which: NDArray[np.int64], lon: Floats, lat: Floats) -> Floats:
        """Metres from point i to polygon `which[i]`, 0 inside; NaN without polygon or point. All (n,)."""
        x, y = self._project(which, lon, lat)
        shapes = self._shapes[which]
        usable = self.known[which] & np.isfinite(x) & np.isfinite(y)
        distances = np.where(usable, 0.0, np.nan)
        # nearly every point lies inside its grid: the quick test first
        outside = usable.copy()
        outside[usable] = ~shapely.contains_xy(shapes[usable], x[usable], y[usable])
        if outside.any():
            points = shapely.points(x[outside], y[outside])
            distances[outside] = shapely.distance(shapes[outside], points)
        return distances

    def _project(self, which: NDArray[np.int64], lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
        return (lon - self._lon0[which]) * self._east[which], (lat - self._lat0[which]) * self._north[which]
