"""Reading reference files in slices: a line that cannot be read is refused by itself, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ContractError
from pipeline.reference import read
from pipeline.reference.read import read_slices
from pipeline.reference.schema import KINDS

GOOD = [f"O{number},甲{number}".encode() for number in range(40)]


@pytest.mark.parametrize("block", [64, 1 << 20], ids=["slices", "one slice"])
@pytest.mark.parametrize("at", [0, 25, 39])
def test_bytes_that_are_no_utf8_cost_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, at: int
) -> None:
    monkeypatch.setattr(read, "_BLOCK_BYTES", block)
    lines = [*GOOD]
    lines[at] = b"O%d,\xb9\xab" % at
    path = tmp_path / "organisations.csv"
    path.write_bytes(b"org_code,name\n" + b"\n".join(lines) + b"\nO1\nO99,last\n")
    slices = list(read_slices(path, KINDS["organisations"]))
    assert (len(slices) > 1) == (block == 64)
    assert sorted(place for piece in slices for place in piece.broken) == [at + 2, 42]
    taken = {
        int(place): code
        for piece in slices
        for place, code in zip(piece.places, piece.cells["org_code"], strict=True)
    }
    expected = {number + 2: f"O{number}" for number in range(40) if number != at}
    assert taken == expected | {43: "O99"}


@pytest.mark.parametrize(
    "text",
    [
        "O1,甲 13800001234\nO2,乙\n",
        "org_code,name,13800001234\nO1,甲,x\n",
        "a 13800001234,a 13800001234\n1,2\n",
    ],
)
def test_a_file_without_a_header_shows_no_number_of_its_first_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "organisations.csv"
    path.write_text(text)
    with pytest.raises(ContractError) as refused:
        list(read_slices(path, KINDS["organisations"]))
    assert "unknown column" in str(refused.value)
    assert "[手机号]" in str(refused.value)
    assert "13800001234" not in str(refused.value)
