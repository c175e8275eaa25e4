"""Invented personal numbers: the region prefix 999999 is not assigned, so none belongs to anybody."""

from __future__ import annotations

from pipeline.contract.privacy import is_id_number, is_mobile

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def fake_id(number: int) -> str:
    """The identity number of invented person `number` (0 … 999,999)."""
    born = f"1{900 + number // 9_990 % 90:03d}0{1 + number % 9}{10 + number // 9 % 19}"
    body = f"999999{born}{number // 171 % 999:03d}"
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, body, strict=True))
    made = body + "10X98765432"[total % 11]
    assert is_id_number(made), made
    return made


def fake_mobile(number: int) -> str:
    made = f"1990000{number % 10_000:04d}"
    assert is_mobile(made)
    return made


def fake_card(number: int) -> str:
    """A bank card number that satisfies Luhn, under a prefix that no bank has."""
    body = f"99000000{number % 10_000_000:07d}"
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return body + str(-total % 10)


def full_width(text: str) -> str:
    """ASCII digits and letters as Chinese input methods write them."""
    return "".join(chr(ord(sign) + 0xFEE0) if sign.isascii() and sign.isalnum() else sign for sign in text)
