"""What the newspapers say about the districts, and what we assume where they say nothing.

Figures marked S are stated in a source newspaper, A are assumptions of the simulation ("more than" is used
as printed). The sources give volumes and counts, never single events: every date in a simulated year is
simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class DistrictFacts:
    """Size of one district: hierarchy, staff, residents (persons), and where it lies on the map.

    box : (west, south, east, north), degrees WGS84; a plausible place, not the real boundary.
    described : whether a newspaper describes the district; the others are assumptions throughout.
    """

    code: str
    described: bool
    villages: int
    grids: int
    units: int
    party_organisations: int
    residents: int
    floating_share: float
    full_time: int
    part_time: int
    professional: int
    leaders: int
    police_deputies: int
    unit_heads: int
    riders: int  # part-time workers who may report through the riders' QR code
    box: tuple[float, float, float, float]


#: In the order of `areas.yaml`. Towns are the real ones and come from that file.
DISTRICTS: Final = (
    # Pengjiang: 132 villages, 410 grids, 389 party organisations, 900+/7,300+/700+ workers are S
    DistrictFacts("440703", True, 132, 410, 5_590, 389, 868_000, 0.35, 900, 7_300, 700, 6, 6, 0, 60,
                  (112.94, 22.56, 113.10, 22.72)),
    # Jianghai: 190 grids, 2,590 units, 168 party organisations, 383/2,259 workers, 18 leaders are S
    DistrictFacts("440704", True, 62, 190, 2_590, 168, 364_700, 0.35, 383, 2_259, 190, 18, 3, 190, 40,
                  (113.10, 22.50, 113.20, 22.62)),
    # Xinhui, Taishan, Kaiping: not described, all A
    DistrictFacts("440705", False, 230, 480, 6_540, 480, 909_300, 0.12, 482, 3_070, 150, 11, 11, 0, 40,
                  (112.80, 22.14, 113.25, 22.50)),
    DistrictFacts("440781", False, 310, 560, 7_630, 560, 907_700, 0.08, 561, 3_570, 150, 17, 17, 0, 40,
                  (112.40, 21.60, 113.05, 22.14)),
    DistrictFacts("440783", False, 270, 460, 6_270, 460, 750_000, 0.10, 461, 2_935, 150, 15, 15, 0, 40,
                  (112.40, 22.14, 112.80, 22.50)),
    # Heshan: 528/1,315/360 workers, 338 party organisations, 328 police deputies, 510+ riders are S
    DistrictFacts("440784", True, 140, 338, 4_610, 338, 530_000, 0.15, 528, 1_315, 360, 10, 328, 0, 510,
                  (112.60, 22.50, 112.94, 22.86)),
    # Enping: 174 villages, 318 grids, 485/3,551/1,011 workers are S
    DistrictFacts("440785", True, 174, 318, 4_330, 318, 486_000, 0.08, 485, 3_551, 1_011, 11, 11, 0, 40,
                  (111.98, 21.95, 112.40, 22.45)),
)  # fmt: skip

#: Shares of residents, base data section 4. Age shares are Xinhui's published ones, the default for the city.
AGE_0_14: Final = 0.161
AGE_15_59: Final = 0.652
AGE_60_UP: Final = 0.187
PINGANTONG_SHARE: Final = 0.010
ELDERLY_ALONE_SHARE: Final = 0.015
DISABILITY_SHARE: Final = 0.025
HARDSHIP_SHARE: Final = 0.012
CHILD_CARE_SHARE: Final = 0.002


@dataclass(frozen=True, slots=True)
class PublishedYear:
    """Events that a district says it received and closed, and where it says so.

    rate_published : False where the source states no closure rate; the demo then publishes null.
    response_rate : share of cases that were responded to; None where the source states none.
    channels : kinds of channel through which these events came.
    """

    code: str
    received: int
    closed: int
    rate_published: bool
    response_rate: float | None
    channels: tuple[str, ...]
    source_file: str
    source_month: str
    what: str

    @property
    def closure_rate(self) -> float | None:
        """closed / received, unrounded; None where the source states no rate."""
        return self.closed / self.received if self.rate_published else None


#: The demo's year (卷). Jianghai's 15,920 is derived: 99.5 % of 16,000. Its response rate
#: is said of departments and citizen demands; the simulation takes it for every case.
PUBLISHED_YEARS: Final = (
    PublishedYear("440703", 23_800, 23_500, True, None, ("public", "care", "desk"),
                  "001_86e69d1057e5e0a3.txt", "November 2022", "citizen demands, 2022 to date"),
    PublishedYear("440704", 16_000, 15_920, True, 1.0,
                  ("staff", "public", "device", "desk", "care", "system"),
                  "002_a3fc531a88a92ab7.txt", "October 2022", "grid events at 99.5 %, all responded to"),
    PublishedYear("440784", 2_000, 2_000, False, None, ("rider",),
                  "003_0767f17a30d61e0f.txt", "October 2024", "events from riders, read as all handled"),
    PublishedYear("440785", 9_160, 9_160, True, None,
                  ("staff", "public", "device", "desk", "care", "system"),
                  "000_2bea1f613e0685e5.txt", "April 2023", "grid events, all closed"),
)  # fmt: skip

#: How every table of the demo is labelled: the volumes are published, the dates are not.
YEAR_LABEL: Final = "published volumes, simulated dates"
