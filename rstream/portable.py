"""Exceptions that travel between processes: type, arguments, attributes and the text of the traceback survive.

Pickle makes an exception anew as `cls(*args)`, where `args` is what the class gave to `Exception.__init__`. One whose
class has an `__init__` of its own cannot be made from that, or, worse, becomes another. So here it is rebuilt without
calling anything of its class. What still cannot travel becomes a `RuntimeError` with its text.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from typing import Any, NamedTuple

from rstream.errors import full_text, one_line


class Packed(NamedTuple):
    """An exception on its way: pickled, where that can be; its text; its traceback."""

    pickled: bytes | None
    line: str
    traceback: str


class Remote(Exception):
    """Carries the traceback of another process, as the cause of its exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def pack(error: BaseException) -> Packed:
    """For any exception. Never raises."""
    line, text = one_line(error), full_text(error)
    try:
        pickled = dumps(error)
        # Only a round trip shows whether it can be made again; and it must be the same kind of error, not a relative.
        if type(pickle.loads(pickled)) is type(error):
            return Packed(pickled, line, text)
    except BaseException:
        pass  # what its class does when it is copied is code of others, and not what went wrong
    return Packed(None, line, text)


def unpack(packed: Packed) -> BaseException:
    """The exception, with the traceback that it had as its cause. Never raises."""
    try:
        loaded: Any = pickle.loads(packed.pickled) if packed.pickled is not None else None
    except BaseException:  # its class cannot be imported here
        loaded = None
    made = issubclass(type(loaded), BaseException)
    error: BaseException = loaded if made else RuntimeError(f"{packed.line} (it could not be pickled)")
    object.__setattr__(error, "__cause__", Remote(packed.traceback))  # also where the class is frozen
    return error


def dumps(what: object) -> bytes:
    """As `pickle.dumps`; exceptions, however deep inside, in a form in which they can be made again."""
    out = io.BytesIO()
    _Pickler(out, pickle.HIGHEST_PROTOCOL).dump(what)
    return out.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)  # not isinstance(): that asks the object, which may have its own mind
        if not issubclass(kind, BaseException) or not _has_own_ways(kind):
            return NotImplemented
        _, args, *state = obj.__reduce__()
        attributes = dict(state[0] or {}) if state else {}
        if isinstance(whole := obj.__getstate__(), tuple):  # it has slots
            attributes |= whole[1]
        return _bare, (kind, args), attributes, None, None, _restore


def _has_own_ways(kind: type[BaseException]) -> bool:
    """Whether it is made in its own way, and has not said how it is pickled."""
    native = _native(kind)

    def own(*methods: str) -> bool:
        return any(getattr(kind, method) is not getattr(native, method) for method in methods)

    return own("__init__", "__new__") and not own("__reduce__", "__reduce_ex__") and kind not in copyreg.dispatch_table


def _native(kind: type) -> type:
    """The builtin exception that it is, by its layout."""
    while kind.__module__ != "builtins":
        assert kind.__base__ is not None
        kind = kind.__base__
    return kind


def _bare(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    native: Any = _native(kind)
    error: BaseException = native.__new__(kind, *args)
    native.__init__(error, *args)
    return error


def _restore(error: BaseException, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        object.__setattr__(error, name, value)
