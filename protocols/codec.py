"""Messages to bytes and back: msgpack arrays of an attrs class's fields, headed by a tag.

Fields travel by position, so a later release may add fields at the end when they have defaults: an older
reader ignores what it does not know, a newer one fills in what is missing. Decoding checks every type;
whatever does not fit is a RemoteProtocolError, never a crash. The encoding is canonical (maps sorted by
key, shortest integers), so its hash can be an id and its bytes can be signed.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
import cattrs
import msgpack

from protocols.errors import LocalProtocolError, RemoteProtocolError

T = TypeVar("T")


def _strict(kind: type) -> Any:
    def check(value: object, _type: object) -> object:
        # bool is an int to Python; on the wire it is not.
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return check


def _number(value: object, _type: object) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise TypeError(f"expected a number, got {type(value).__name__}")


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(
        unstruct_strat=cattrs.UnstructureStrategy.AS_TUPLE, detailed_validation=False, prefer_attrib_converters=False
    )
    for kind in (int, str, bytes, bool):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(float, _number)
    converter.register_unstructure_hook(bytes, lambda value: value)
    return converter


_CONVERTER = _make_converter()


_ATOMS = frozenset((int, str, bytes, bool, float, type(None)))
_FIELDS_OF: dict[type, tuple[str, ...]] = {}


def _plain(value: Any) -> Any:
    """What msgpack packs: attrs instances and tuples as lists, maps sorted by key. Half of all encoding is in here."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple or kind is list:
        return [item if type(item) in _ATOMS else _plain(item) for item in value]
    fields = _FIELDS_OF.get(kind)
    if fields is None and attrs.has(kind):
        fields = _FIELDS_OF[kind] = tuple(field.name for field in attrs.fields(kind))
    if fields is not None:
        return [_plain(getattr(value, name)) for name in fields]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(value[key]) for key in sorted(value)}
    return _CONVERTER.unstructure(value)


def pack(value: Any) -> bytes:
    """The canonical bytes of an attrs instance (without a tag) or of plain data."""
    return bytes(msgpack.packb(_plain(value), use_bin_type=True))


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """An instance of `kind` from the bytes `pack` made; RemoteProtocolError when they do not fit."""
    return _structure(_parse(data), kind)


def _parse(data: bytes | memoryview) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, use_list=True, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        # TypeError: the key of a map is itself a map or an array.
        raise RemoteProtocolError(f"not msgpack: {type(error).__name__}: {error}") from error


def _structure(fields: Any, kind: type[T]) -> T:
    try:
        return _CONVERTER.structure(fields, kind)
    except Exception as error:  # cattrs and field validators raise many kinds; from a peer's bytes all mean one thing.
        raise RemoteProtocolError(f"malformed {kind.__name__}: {type(error).__name__}: {error}") from error


class Codec:
    """The messages of one protocol: each attrs class stands under the tag given for it.

    Tags are small integers and never reused; that is what lets two releases talk.
    """

    def __init__(self, tags: Mapping[int, type]) -> None:
        self._class_of = dict(tags)
        self._tag_of = {kind: tag for tag, kind in tags.items()}
        if len(self._tag_of) != len(self._class_of):
            raise LocalProtocolError("one message class stands under two tags")
        for kind in self._tag_of:
            if not attrs.has(kind):
                raise LocalProtocolError(f"{kind.__name__} is no attrs class")

    def encode(self, message: object) -> bytes:
        """The message's bytes; LocalProtocolError for a class this codec does not know."""
        tag = self._tag_of.get(type(message))
        if tag is None:
            raise LocalProtocolError(f"{type(message).__name__} is no message of this protocol")
        return bytes(msgpack.packb([tag, *_plain(message)], use_bin_type=True))

    def decode(self, data: bytes | memoryview) -> object:
        """The message in the bytes; RemoteProtocolError when they hold none."""
        parsed = _parse(data)
        if not isinstance(parsed, list) or not parsed or type(parsed[0]) is not int:
            raise RemoteProtocolError("a message is an array headed by its tag")
        kind = self._class_of.get(parsed[0])
        if kind is None:
            raise RemoteProtocolError(f"unknown message tag {parsed[0]}")
        return _structure(parsed[1:], kind)
