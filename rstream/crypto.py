"""Payloads sealed with AES-256-GCM: nobody reads them in Redis, its files or the blob store, nobody alters them, and
none is taken for another's. A layer between codec and claim check: what is stored is what is sealed.

The tag covers what the payload belongs to, namespace, stream and key, so that an entry cannot be moved to another of
these. Nonces are 96 random bits: a key is good for 2^32 payloads. docs/wire-format.md has the format for other
languages, docs/encryption.md what is encrypted and what is not.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from weakref import WeakValueDictionary

import msgpack

from rstream.errors import ConfigError, EntryInvalid, Undecryptable, one_line
from rstream.reference import SEALED

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

log = logging.getLogger("rstream")

FORM = 1
"""AES-256-GCM, with associated data as `Seal` makes it."""

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16

ASK_AGAIN = 10.0
"""Seconds between two readings of the keys for ids that are not known: who can write to Redis can make up many."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII)

Keys = Mapping[str, bytes | str]
"""By id, the newest first: 32 bytes, or their base64."""


class _Key(NamedTuple):
    """head: of what is sealed with it, up to the nonce."""

    id: str
    cipher: AESGCM
    head: bytes


class Keyring:
    """Keys by their ids, the newest first: that one encrypts, all decrypt.

    keys: a mapping of ids to keys (32 bytes, or their base64), or a callable that returns one, as from a KMS. An id has
    1 to 32 letters, digits, "_", "." or "-", is stored with every payload, and never given to another key · refresh: a
    callable is asked again after so many seconds (60), in a thread, and when a payload names an id that is not known;
    where it fails then, the keys that were there stay · accept_plaintext: whether payloads that are not encrypted are
    read, too, while a stream is migrated; otherwise they become dead letters with the reason "plaintext".

    They are first read when they are needed, and are in no `repr`, error, log line or pickle. Raises `ConfigError`.
    """

    def __init__(
        self, keys: Keys | Callable[[], Keys], *, accept_plaintext: bool = False, refresh: float = 60.0
    ) -> None:
        self._source = keys if callable(keys) else None
        self._told = "the keys" if self._source is None else f"what {_name_of(keys)}() returns"
        self._refresh, self.accept_plaintext = refresh, accept_plaintext
        self._lock = threading.Lock()
        self._asked = self._stale = 0.0
        self._reading = False
        self._held: dict[str, _Key] | None = None if callable(keys) else _checked(keys, self._told)
        self._newest: _Key | None = None if self._held is None else _first(self._held)

    @classmethod
    def env(cls, name: str = "RSTREAM_KEYS", *, accept_plaintext: bool = False) -> Keyring:
        """The keys in an environment variable: `id:base64`, the newest first, with blanks or commas between."""

        def read() -> Keys:
            if not (text := os.environ.get(name)):
                raise ConfigError(f"{name} is not set: give it the keys, newest first, as id:base64")
            return _parsed(text, name)

        return cls._of(read, name, accept_plaintext, float("inf"))

    @classmethod
    def file(cls, path: Path | str, *, accept_plaintext: bool = False, refresh: float = 60.0) -> Keyring:
        """The keys in a file, as in `env`, one a line; lines that begin with # are comments. It is read again after
        `refresh` seconds: a mounted secret may change under a running worker.
        """

        def read() -> Keys:
            try:
                return _parsed(Path(path).read_text("utf-8"), str(path))
            except (OSError, UnicodeDecodeError) as error:
                told = getattr(error, "strerror", None) or "it is no text"
                raise ConfigError(f"{path}: the keys cannot be read: {told}") from None

        return cls._of(read, str(path), accept_plaintext, refresh)

    @classmethod
    def _of(cls, read: Callable[[], Keys], told: str, accept_plaintext: bool, refresh: float) -> Keyring:
        ring = cls(read, accept_plaintext=accept_plaintext, refresh=refresh)
        ring._told = told
        return ring

    def __repr__(self) -> str:
        return f"Keyring({', '.join(map(repr, self._held or ())) or f'of {self._told}, not read yet'})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Keyring is not pickled: it would take its keys along")

    def load(self) -> None:
        """Read the keys now, if they were not. Blocks. Raises `ConfigError`."""
        if self._held is None:
            with self._lock:
                if self._held is None:
                    self._take(self._read())

    @property
    def newest(self) -> _Key:
        """What encrypts. Raises `ConfigError` where the keys were not read yet, and cannot be."""
        if self._newest is None:
            self.load()
        elif self._source is not None and time.monotonic() > self._stale and not self._reading:
            self._reading = True  # two threads may both come here, and read twice: no harm
            threading.Thread(target=self._read_again, name="rstream-keys", daemon=True).start()
        assert self._newest is not None
        return self._newest

    def find(self, id: str) -> _Key | None:
        """A key. Where it is not known, the keys are read again, at most every `ASK_AGAIN` seconds. Raises as
        `newest`.
        """
        self.load()
        assert self._held is not None
        if id not in self._held and self._source is not None and time.monotonic() - self._asked > ASK_AGAIN:
            self._read_again()
        return self._held.get(id)

    @property
    def ids(self) -> list[str]:
        """The newest first. Raises as `newest`."""
        self.load()
        return [*(self._held or ())]

    def _read(self) -> dict[str, _Key]:
        assert self._source is not None
        self._asked = time.monotonic()
        try:
            return _checked(self._source(), self._told)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"the keys cannot be read: {self._told} failed: {one_line(error)}") from error

    def _take(self, held: dict[str, _Key]) -> None:
        self._held, self._newest = held, _first(held)
        self._stale = time.monotonic() + self._refresh

    def _read_again(self) -> None:
        try:
            with self._lock:
                self._take(self._read())
        except ConfigError as error:
            self._stale = time.monotonic() + ASK_AGAIN
            log.warning("the keys that were read before stay: %s", error)
        finally:
            self._reading = False


def _name_of(source: Any) -> str:
    return getattr(source, "__qualname__", type(source).__name__)


def _first(held: Mapping[str, _Key]) -> _Key:
    return next(iter(held.values()))


def _parsed(text: str, told: str) -> Keys:
    """`id:base64`, with blanks, line ends or commas between. Raises `ConfigError`, which quotes nothing of it."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, bytes | str] = {}
    for n, item in enumerate(" ".join(lines).replace(",", " ").split(), 1):
        id, colon, key = item.partition(":")
        if not colon:
            raise ConfigError(f"{told}: key {n} is not written as id:base64")
        if id in found:
            raise ConfigError(f"{told}: key {n} has the id of an earlier one: an id is never given to another key")
        found[id] = key
    return found


def _checked(keys: Any, told: str) -> dict[str, _Key]:
    """Raises `ConfigError`, which quotes no key, and no id that may be one."""
    if not isinstance(keys, Mapping) or not keys:
        raise ConfigError(f"{told}: there are no keys: a mapping of ids to keys is wanted, the newest first")
    return {id: _key(id, value, f"{told}: key {n}") for n, (id, value) in enumerate(keys.items(), 1)}


def _key(id: object, value: object, told: str) -> _Key:
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ConfigError(f"{told}: its id must have 1 to 32 letters, digits, '.', '_' or '-'")
    raw = value if isinstance(value, bytes) else b""
    if isinstance(value, str):
        with suppress(ValueError):
            raw = base64.b64decode(value, validate=True)
    if len(raw) != KEY_BYTES:
        raise ConfigError(
            f"{told}, {id!r}: it must be {KEY_BYTES} random bytes, or their base64: "
            'python -c "import os, base64; print(base64.b64encode(os.urandom(32)).decode())"'
        )
    head = b"\x94" + msgpack.packb(FORM) + msgpack.packb(id) + b"\xc4\x0c"
    return _Key(id, _cipher()(raw), head)


def _cipher() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError("encryption needs the package cryptography: pip install 'rstream[crypto]'") from None
    return AESGCM


class Seal:
    """How the payloads, checkpoints and steps of one stream are sealed and opened.

    It can be sent to another process, and carries no keys: there it is that of the stream which is declared there.
    """

    def __init__(self, ring: Keyring, namespace: str, stream: str) -> None:
        self.ring, self._place = ring, f"{namespace}/{stream}"
        self._entry = f"rstream:{FORM}:entry:{self._place}:".encode()

    def register(self) -> Seal:
        """Have copies that come from other processes find it."""
        _declared[self._place] = self
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self._place,)

    def seal(self, payload: bytes, key: bytes) -> bytes:
        """An encoded event as it is stored; key: b"" for none. Raises `ConfigError`."""
        return _sealed(self.ring.newest, os.urandom(NONCE_BYTES), payload, self._entry + key)

    def seal_all(self, payloads: Sequence[bytes], keys: Iterable[bytes]) -> list[bytes]:
        """The same of many."""
        newest, place, noise = self.ring.newest, self._entry, os.urandom(NONCE_BYTES * len(payloads))
        nonces = (noise[at : at + NONCE_BYTES] for at in range(0, len(noise), NONCE_BYTES))
        return [
            _sealed(newest, nonce, payload, place + key)
            for nonce, payload, key in zip(nonces, payloads, keys, strict=False)
        ]

    def open(self, payload: bytes, key: bytes | str | None) -> bytes:
        """The encoded event. key: its entry's. Raises `EntryInvalid`."""
        raw = key.encode() if isinstance(key, str) else key or b""
        return self._opened(payload, self._entry + raw, "the payload", "this stream, and of this key")

    def seal_memo(self, value: bytes, place: str) -> bytes:
        """A checkpoint, or the result of a step. place: group, entry and field. Raises `ConfigError`."""
        return _sealed(self.ring.newest, os.urandom(NONCE_BYTES), value, self._memo(place))

    def open_memo(self, value: bytes, place: str) -> bytes:
        """Raises `EntryInvalid`."""
        return self._opened(value, self._memo(place), "it", "this entry, and kept under this name")

    def _memo(self, place: str) -> bytes:
        return f"rstream:{FORM}:memo:{self._place}/{place}".encode()

    def _opened(self, sealed: bytes, place: bytes, told: str, whose: str) -> bytes:
        if sealed[:1] != SEALED:
            if self.ring.accept_plaintext:
                return sealed
            raise EntryInvalid(
                "plaintext",
                f"{told} is not encrypted, and everything of stream {self._place!r} is: whoever wrote it has no keys. "
                "While a stream is migrated, Keyring(…, accept_plaintext=True) takes both",
            )
        id, nonce, data = _parts(sealed)
        try:
            key = self.ring.find(id)
        except ConfigError as error:
            raise Undecryptable(f"{told} is encrypted with key {id!r}, and {error}") from None
        if key is None:
            raise Undecryptable(
                f"{told} is encrypted with key {id!r}, which is not here: there are {', '.join(self.ring.ids)}"
            )
        try:
            return key.cipher.decrypt(nonce, data, place)
        except Exception:  # InvalidTag, which says nothing more, or sizes that cannot be
            raise Undecryptable(
                f"{told} was altered, or is not of {whose}, or key {id!r} is not the one that encrypted it"
            ) from None


def _sealed(key: _Key, nonce: bytes, payload: bytes, place: bytes) -> bytes:
    data = key.cipher.encrypt(nonce, payload, place)
    size = len(data)
    if size < 256:
        return b"".join((key.head, nonce, b"\xc4", size.to_bytes(1), data))
    if size < 65_536:
        return b"".join((key.head, nonce, b"\xc5", size.to_bytes(2), data))
    return b"".join((key.head, nonce, b"\xc6", size.to_bytes(4), data))


def _parts(sealed: bytes) -> tuple[str, bytes, bytes]:
    """(key id, nonce, data with its tag). Raises `EntryInvalid`."""
    try:
        form, id, nonce, data = msgpack.unpackb(sealed)
    except Exception as error:
        raise EntryInvalid("undecodable", f"it is cut off, or broken: {type(error).__name__}") from None
    if form != FORM or type(form) is not int:
        raise Undecryptable("it is encrypted in a form that this version of rstream does not know: upgrade it")
    if not isinstance(id, str) or not _ID.fullmatch(id) or not isinstance(nonce, bytes) or not isinstance(data, bytes):
        raise EntryInvalid("undecodable", "it begins like what is encrypted, and is not: its parts are others")
    return id, nonce, data


def key_id(payload: bytes) -> str | None:
    """Of the key that a payload is encrypted with; None where it is not."""
    try:
        return _parts(payload)[0] if payload[:1] == SEALED else None
    except EntryInvalid:
        return None


_declared: WeakValueDictionary[str, Seal] = WeakValueDictionary()


def _found(place: str) -> Seal:
    """That of a stream, in a process that got a copy of it."""
    if (found := _declared.get(place)) is not None:
        return found

    def keys() -> NoReturn:
        raise ConfigError(
            f"stream {place!r} is encrypted, and this process has no keys for it: declare it, encrypt= and all, in the "
            "module of its handler, or in one that it imports"
        )

    namespace, _, stream = place.partition("/")
    return Seal(Keyring(keys), namespace, stream)
