"""Chinese words for the codes of legends, out of the product's own tables where it has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pipeline.cli.tables import OUTCOMES_ZH
from pipeline.read.names import Areas
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import load_settings

_SETTINGS: Final = load_settings()
CATALOGUES: Final = load_catalogues(_SETTINGS.catalogue_dir)
AREAS: Final = Areas.load(_SETTINGS.catalogue_dir)

#: Label of closed sets → its codes → their words.
CODES: Final[Mapping[str, Mapping[str, str]]] = {
    "district": AREAS.districts,
    "reason": CATALOGUES.reason_names_zh | {"other": "其他"},
    "outcome": OUTCOMES_ZH,
    "answer": {"accepted": "接收", "refused": "拒收", "not_written": "未写入"},
    "level": {"L1": "重复投递", "L2": "重复提交"},
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
