"""Varied Chinese descriptions of reports and handling notes, put together from short phrases."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from pipeline.simulate.scene import Ints


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_OPENERS: Final = _phrases(
    """
    巡查时发现 群众反映 接居民来电，称 今日走访了解到 有街坊拍照上传，反映 再次接到反映， 现场核实，
    物业人员反映 路过时看到 家属求助，称
    """
)
_PLACES: Final = _phrases(
    """
    北门出入口 菜市场东侧 小区中心花园 学校门口斑马线旁 河堤步道 老街骑楼下 公交站台后面 村口榕树旁
    停车场入口 综合市场二楼 幼儿园围墙外 工业园主干道 文化广场 卫生站门前 祠堂旁空地 沿街商铺门前
    地下车库 天桥底 排洪渠边 出租屋楼道 居委会对面 农贸市场后巷 加油站路口 篮球场边
    """
)
_DETAILS: Final = _phrases(
    """
    影响居民出行 已持续多日 存在安全隐患 气味较大 夜间尤为明显 雨后更加严重 附近有老人和小孩经过
    范围约五平方米 范围约二十平方米 此前处理过又出现 需要职能部门到场 已做好临时警示 当事人情绪较激动
    多名住户有意见 暂无人员受伤 已拍照取证 占用消防通道 需要协调物业 请尽快安排 情况比较紧急
    """
)
_CLOSINGS: Final = ("，请处理。", "，请跟进。", "，望尽快解决。", "。", "，请核实并回复。", "，谢谢。")
_NOTES: Final = _phrases(
    """
    已安排人员到场处理 现场清理完毕，恢复正常 已约谈当事双方，达成一致意见 已通知责任单位限期整改
    整改完成，复查合格 已上门走访并登记 已设置警示标志，后续跟踪 联合执法，当场纠正
    已转社区跟进并回复群众 材料齐全，已代办完成
    """
)


def _pick(rng: np.random.Generator, phrases: tuple[str, ...], count: int) -> pl.Series:
    return pl.Series(phrases).gather(rng.integers(0, len(phrases), count).astype(np.uint32))


def descriptions(rng: np.random.Generator, grid_names: pl.Series, matter_names: pl.Series) -> pl.Series:
    """(n,) texts: who noticed it, where, what (the matter's name), how bad. No personal data."""
    count = len(grid_names)
    return (
        _pick(rng, _OPENERS, count)
        + grid_names
        + _pick(rng, _PLACES, count)
        + matter_names
        + pl.Series(["，"])
        + _pick(rng, _DETAILS, count)
        + pl.Series(["，"])
        + _pick(rng, _DETAILS, count)
        + _pick(rng, _CLOSINGS, count)
    )


def notes(rng: np.random.Generator, count: int) -> pl.Series:
    """(count,) short notes of a handler."""
    return _pick(rng, _NOTES, count)


def hashes(rng: np.random.Generator, count: int) -> pl.Series:
    """(count,) SHA-256 values of photos that do not exist: 64 random hex digits."""
    digits = rng.bytes(count * 32).hex()
    return pl.Series([digits[at : at + 64] for at in range(0, len(digits), 64)], dtype=pl.String)


def tokens(numbers: Ints, alphabet: str = "abcdefghjkmnpqrstuvwxyz") -> pl.Series:
    """(n,) 8-letter tokens of numbers, letters only, so that no id can be taken for a phone number."""
    letters = np.array(list(alphabet))
    places = numbers[:, None] // len(alphabet) ** np.arange(8)[None, :] % len(alphabet)
    return pl.Series(["".join(row) for row in letters[places].tolist()], dtype=pl.String)
