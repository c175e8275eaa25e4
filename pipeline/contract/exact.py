"""Decoders that check every constraint of the contract, the forms of texts among them, value by value.

The decoder of `msgspec` matches one regular expression per text: so its error can name the field, and so it
is slow. The plain types carry their forms as `Form`; here they become constraints.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Final, Generic, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from pipeline.contract.event import Form

T = TypeVar("T", bound=Struct)

_made: Final[dict[type[Struct], type[Struct]]] = {}


def exact(kind: type[T]) -> type[T]:
    """`kind`, by the same name, with its forms and those of the types that it holds as constraints."""
    if kind not in _made:
        fields: list[Any] = []
        for field in msgspec.structs.fields(kind):
            if field.default is not msgspec.NODEFAULT:
                fields.append((field.name, _exact(field.type), field.default))
            else:
                fields.append((field.name, _exact(field.type)))
        config = kind.__struct_config__
        _made[kind] = msgspec.defstruct(
            kind.__name__,
            fields,
            namespace={"__doc__": kind.__doc__},
            kw_only=True,
            frozen=True,
            forbid_unknown_fields=config.forbid_unknown_fields,
        )
    return cast("type[T]", _made[kind])


def _exact(kind: Any) -> Any:
    """A field's type with forms as constraints."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return exact(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        notes = [Meta(pattern=note.pattern) if isinstance(note, Form) else note for note in parts[1:]]
        return Annotated[(_exact(parts[0]), *notes)]
    if origin in (Union, UnionType):
        return Union[tuple(map(_exact, parts))]  # noqa: UP007  the members are known at run time only
    if origin in (list, dict):
        return origin[tuple(map(_exact, parts))]
    return kind


class ExactDecoder(Generic[T]):
    """Decodes JSON into `kind`; raises as msgspec does where any constraint is broken. Twice the work."""

    def __init__(self, kind: type[T]) -> None:
        self._exact = msgspec.json.Decoder(exact(kind))
        self._plain = msgspec.json.Decoder(kind)

    def decode(self, raw: bytes | msgspec.Raw) -> T:
        self._exact.decode(raw)
        return self._plain.decode(raw)
