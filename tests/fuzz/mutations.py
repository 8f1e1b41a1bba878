"""Valid documents and files, made wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_SIZES = (0, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**400)
_SCALARS: tuple[Any, ...] = (
    *(None, True, False, "", "a", "\0", "é😀", "x" * 2000, "..", "/etc/passwd", "nan", "1"),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *_SIZES,
    *(-size for size in _SIZES),
)


def odd_values() -> st.SearchStrategy[Any]:
    """Values of the wrong type, size or sign, and empty, long or deep ones."""
    scalars = st.sampled_from(_SCALARS)
    return st.one_of(
        scalars,
        scalars,
        st.lists(scalars, max_size=4),
        st.dictionaries(st.sampled_from(["a", "type", "id", "content", "0"]), scalars, max_size=3),
        scalars.map(lambda value: [value] * 500),
        st.integers(1, 150).map(_deep),
    )


@st.composite
def edited(draw: st.DrawFn, document: Any) -> Any:
    """The JSON document with some of its values replaced, left out, doubled or put elsewhere."""
    result = copy.deepcopy(document)
    places = list(_places(document))
    for _ in range(draw(st.integers(1, 3))):
        # First how deep, so that long lists do not get all edits.
        depth = draw(st.sampled_from(sorted({len(place) for place in places})))
        *way, key = draw(st.sampled_from([place for place in places if len(place) == depth]))
        try:
            holder = result
            for step in way:
                holder = holder[step]
            match draw(st.sampled_from(["replace", "replace", "remove", "rename", "move"])):
                case "replace":
                    holder[key] = draw(odd_values())
                case "remove":
                    del holder[key]
                case "rename":
                    holder[draw(st.sampled_from(["", "x", "model.norm.weight", "\0"]))] = holder.pop(key)
                case "move":
                    holder[key] = copy.deepcopy(_at(document, draw(st.sampled_from(places))))
        except (KeyError, IndexError, TypeError, AttributeError):
            pass  # an earlier edit took the place away
    return result


@st.composite
def damaged(draw: st.DrawFn, content: bytes, upto: int) -> bytes:
    """The bytes with damage in the first `upto`."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(upto, len(result)) - 1)))
        match draw(st.sampled_from(["byte", "number", "cut", "insert", "remove", "copy"])):
            case "byte":
                result[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":
                width = draw(st.sampled_from([4, 8]))
                size = draw(st.sampled_from(_SIZES)) % 2 ** (8 * width)
                result[at : at + width] = size.to_bytes(width, "little")
            case "cut":
                del result[at:]
            case "insert":
                result[at:at] = draw(st.binary(max_size=20))
            case "remove":
                del result[at : at + draw(st.integers(1, 40))]
            case "copy":
                start = draw(st.integers(0, upto))
                result[at:at] = content[start : start + draw(st.integers(1, 200))]
    return bytes(result)


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*way, key)
        yield from _places(part, (*way, key))


def _at(document: Any, way: tuple[Any, ...]) -> Any:
    for step in way:
        document = document[step]
    return document


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
