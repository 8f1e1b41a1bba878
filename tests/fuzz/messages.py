"""Protobuf messages as nobody would write them."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.examples import examples
from tests.fuzz.mutations import damaged

_INTEGERS = st.sampled_from([0, 1, 2, 300, 2**31 - 1])
_VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.sampled_from([0.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan")]),
    FieldDescriptor.CPPTYPE_INT32: st.one_of(_INTEGERS, st.sampled_from([-1, -(2**31)])),
    FieldDescriptor.CPPTYPE_INT64: st.one_of(_INTEGERS, st.sampled_from([-1, -(2**63), 2**63 - 1])),
    FieldDescriptor.CPPTYPE_UINT32: st.one_of(_INTEGERS, st.just(2**32 - 1)),
    FieldDescriptor.CPPTYPE_UINT64: st.one_of(_INTEGERS, st.just(2**64 - 1)),
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from([0, 1, 99, -1]),
}
_VALUES[FieldDescriptor.CPPTYPE_DOUBLE] = _VALUES[FieldDescriptor.CPPTYPE_FLOAT]
_TEXTS = st.sampled_from(["", "a", "the quick brown fox", "\0", "é😀", "<|im_start|>", "{{ 1 }}", "x" * 5000])
_BYTES = st.one_of(st.binary(max_size=40), st.just(b"\xff" * 300))


@st.composite
def odd_message(draw: st.DrawFn, kind: type[Message], depth: int = 3) -> Any:
    """A message that can be read, with fields of any value their types allow."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None:
            if not depth:
                continue
            inner = odd_message(field.message_type._concrete_class, depth - 1)
            if field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(inner, max_size=3)))
            else:
                getattr(message, field.name).CopyFrom(draw(inner))
            continue
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            values = _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _TEXTS
        else:
            values = _VALUES[field.cpp_type]
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values, max_size=6)))
        else:
            setattr(message, field.name, draw(values))
    return message


def requests(valid: Message, count: int) -> list[bytes]:
    """Serialised messages of the kind of `valid`: itself, damaged; odd ones; and bytes that are none."""
    content = valid.SerializeToString()
    odd = odd_message(type(valid)).map(lambda message: message.SerializeToString())
    wrong = st.one_of(odd, odd, damaged(content, len(content)), st.binary(max_size=60))
    found: list[bytes] = []

    @examples(count)
    @given(wrong)
    def collect(data: bytes) -> None:
        found.append(data)

    collect()
    return found
