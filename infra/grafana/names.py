"""Chinese words with English ones for codes, out of the product's own tables where it has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from pipeline.cli.tables import OUTCOMES_ZH
from pipeline.read.names import Areas
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import load_settings

_SETTINGS: Final = load_settings()
CATALOGUES: Final = load_catalogues(_SETTINGS.catalogue_dir)
AREAS: Final = Areas.load(_SETTINGS.catalogue_dir)

_TILES: Final = Path(__file__).parents[2] / "pipeline" / "page" / "static" / "tiles.js"


def _districts_en() -> dict[str, str]:
    document = yaml.safe_load((_SETTINGS.catalogue_dir / "areas.yaml").read_text(encoding="utf-8"))
    return {district["code"]: district["name_en"] for district in document["districts"]}


def _towns_en() -> dict[str, str]:
    """The page has the only ones."""
    lines = re.findall(r'^  \["(\d{9})", .*, "(.+)"\],$', _TILES.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(lines)


def _both(chinese: Mapping[str, str], english: Mapping[str, str]) -> dict[str, str]:
    return {code: f"{name} {english[code]}" for code, name in chinese.items()}


_MATTERS_EN: Final = {code: referral.name_en for code, referral in CATALOGUES.referrals.items()} | {
    code: matter.name_en for version in CATALOGUES.versions for code, matter in version.matters.items()
}
#: Dimension of the KPI → its keys → their names in both languages.
NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "district": _both(AREAS.districts, _districts_en()),
    "town": _both(AREAS.towns, _towns_en()),
    "department": _both(
        CATALOGUES.department_names_zh,
        {code: department.name_en for code, department in CATALOGUES.departments.items()},
    ),
    "matter": _both(CATALOGUES.matter_names_zh, _MATTERS_EN),
}

#: Label of closed sets → its codes → their words; in English too where the code is no English word.
CODES: Final[Mapping[str, Mapping[str, str]]] = {
    "district": NAMES["district"],
    "reason": CATALOGUES.reason_names_zh | {"other": "其他"},
    "outcome": OUTCOMES_ZH,
    "answer": {"accepted": "接收", "refused": "拒收", "not_written": "未写入"},
    "level": {"L1": "重复投递 redelivered", "L2": "重复提交 sent anew"},
    "stage": {
        "decode": "解码",
        "deduplicate": "去重",
        "look_up": "查基础数据",
        "admit": "准入",
        "drop_resends": "剔除重复提交",
        "enrich": "补全",
        "fold": "折叠案件",
    },
    "table": {
        "events": "事件",
        "rejections": "不予受理",
        "duplicates": "重复",
        "quarantine": "隔离",
        "case_events": "案件的事件",
        "cases": "案件",
    },
}
_TEMPLATE: Final = re.compile(r"{{(\w+)}}")


def shown(legend: str) -> dict[str, str]:
    """Every name that a legend of nothing but a closed label can have → the name it is shown under."""
    label = _TEMPLATE.fullmatch(legend)
    return {code: f"{word} {code}" for code, word in CODES.get(label.group(1), {}).items()} if label else {}
