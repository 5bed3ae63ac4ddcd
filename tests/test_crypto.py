"""Keys, and what is sealed with them: pure, so tested with whatever hypothesis thinks of."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstream import Keyring
from rstream import crypto as cryptos
from rstream.crypto import NONCE_BYTES, Seal, key_id
from rstream.errors import ConfigError, EntryInvalid, Undecryptable, full_text
from rstream.reference import LARGEST, SEALED
from tests.waiting import eventually

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
OLD64, NEW64 = (base64.b64encode(key).decode() for key in (OLD, NEW))
KEYS = st.text(max_size=20).map(str.encode)


def seal(keys: Any = None, namespace: str = "ns", stream: str = "orders", **options: Any) -> Seal:
    return Seal(Keyring(keys or {"new": NEW, "old": OLD}, **options), namespace, stream)


# -- sealed and opened


@given(st.binary(max_size=70_000), KEYS)
def test_what_is_sealed_comes_back(payload: bytes, key: bytes) -> None:
    ours = seal()
    for sealed in (ours.seal(payload, key), *ours.seal_all([payload, b""], [key, b"other"])[:1]):
        assert sealed[:1] == SEALED and key_id(sealed) == "new"
        assert ours.open(sealed, key) == ours.open(sealed, key.decode()) == payload
        assert len(payload) < 4 or payload not in sealed
    assert ours.open(ours.seal(payload, b""), None) == payload


@pytest.mark.parametrize("size", [0, 239, 240, 65_519, 65_520, 1_000_000])
def test_what_is_sealed_is_msgpack_of_whatever_size(size: int) -> None:
    form, id, nonce, data = msgpack.unpackb(seal().seal(bytes(size), b"k"))
    assert (form, id, len(nonce), len(data)) == (1, "new", NONCE_BYTES, size + 16)


@pytest.mark.parametrize(
    "other",
    [{"namespace": "other"}, {"stream": "others"}, {"keys": {"new": OLD}}, {"stream": "orders:ada", "key": b""}],
)
def test_what_is_sealed_is_bound_to_namespace_stream_and_key(other: dict[str, Any]) -> None:
    sealed = seal().seal(b"secret", b"ada")
    key = other.pop("key", b"ada")
    with pytest.raises(Undecryptable, match="was altered, or is not of this stream, and of this key") as caught:
        seal(**other).open(sealed, key)
    assert caught.value.reason == "undecryptable"
    for key in (None, b"", "bob", b"ad", b"ada "):
        with pytest.raises(Undecryptable):
            seal().open(sealed, key)


@given(st.binary(max_size=300), st.data())
def test_no_bit_can_be_changed(payload: bytes, data: st.DataObject) -> None:
    sealed = bytearray(seal().seal(payload, b"ada"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(EntryInvalid):
        seal().open(bytes(sealed), b"ada")


@given(st.binary(max_size=300), st.data())
def test_nothing_can_be_cut_off_or_added(payload: bytes, data: st.DataObject) -> None:
    sealed = seal().seal(payload, b"ada")
    for wrong in (sealed[: data.draw(st.integers(0, len(sealed) - 1))], sealed + data.draw(st.binary(min_size=1))):
        with pytest.raises(EntryInvalid):
            seal().open(wrong, b"ada")


@given(st.binary(max_size=200))
def test_noise_that_begins_alike_is_refused(noise: bytes) -> None:
    with pytest.raises(EntryInvalid):
        seal().open(SEALED + noise, b"ada")
    assert key_id(SEALED + noise) is None or noise


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([2, "new", bytes(12), bytes(16)], "form that this version"),
        ([True, "new", bytes(12), bytes(16)], "form that this version"),
        ([1, "no such", bytes(12), bytes(16)], "its parts are others"),
        ([1, "a\nb", bytes(12), bytes(16)], "its parts are others"),
        ([1, "x" * 33, bytes(12), bytes(16)], "its parts are others"),
        ([1, 7, bytes(12), bytes(16)], "its parts are others"),
        ([1, "new", "n", bytes(16)], "its parts are others"),
        ([1, "new", b"", bytes(16)], "was altered"),
        ([1, "new", bytes(200), bytes(16)], "was altered"),
        ([1, "new", bytes(12), b""], "was altered"),
        ([1, "gone", bytes(12), bytes(16)], "key 'gone', which is not here: there are new, old"),
    ],
)
def test_what_only_looks_like_it_is_refused(parts: list[Any], told: str) -> None:
    with pytest.raises(EntryInvalid, match=told):
        seal().open(msgpack.packb(parts), b"ada")


def test_nonces_are_random() -> None:
    ours = seal()
    some = [ours.seal(b"x", b"k") for _ in range(500)] + ours.seal_all([b"x"] * 5_000, [b"k"] * 5_000)
    nonces = [msgpack.unpackb(each)[2] for each in some]
    assert max(Counter(nonces).values()) == 1
    assert all(len({nonce[n] for nonce in nonces}) > 200 for n in range(NONCE_BYTES))


def test_a_checkpoint_is_bound_to_its_entry_and_its_name() -> None:
    ours = seal()
    kept = ours.seal_memo(b"value", "g/1-0@1.3:c")
    assert ours.open_memo(kept, "g/1-0@1.3:c") == b"value"
    for place in ("g/1-0@1.3:s:step", "g/1-1@1.3:c", "h/1-0@1.3:c"):
        with pytest.raises(Undecryptable, match="this entry"):
            ours.open_memo(kept, place)
    with pytest.raises(Undecryptable):
        ours.open(kept, b"")


# -- plaintext, rotation


def test_plaintext_is_refused_unless_it_is_allowed() -> None:
    plain = msgpack.packb([1, {"a": 1}])
    with pytest.raises(EntryInvalid, match="is not encrypted, and everything of stream 'ns/orders' is") as caught:
        seal().open(plain, b"ada")
    assert caught.value.reason == "plaintext"
    assert seal(accept_plaintext=True).open(plain, b"ada") == plain
    with pytest.raises(Undecryptable):
        seal(accept_plaintext=True).open(seal({"new": OLD}).seal(plain, b"ada"), b"ada")


def test_the_newest_key_encrypts_and_all_decrypt() -> None:
    before = seal({"old": OLD}).seal(b"a", b"k")
    rotated = seal({"new": NEW, "old": OLD})
    after = rotated.seal(b"b", b"k")
    assert (key_id(before), key_id(after)) == ("old", "new")
    assert (rotated.open(before, b"k"), rotated.open(after, b"k")) == (b"a", b"b")
    with pytest.raises(Undecryptable, match=r"with key 'old', which is not here: there are new$"):
        seal({"new": NEW}).open(before, b"k")


def test_a_file_that_changes_is_read_again_when_a_key_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# newest first\n\nold:{OLD64}\n")
    ours = Seal(Keyring.file(path), "ns", "orders")
    assert ours.open(ours.seal(b"a", b"k"), b"k") == b"a"
    path.write_text(f"new:{NEW64}\nold:{OLD64}\n")
    theirs = Seal(Keyring.file(path), "ns", "orders").seal(b"b", b"k")
    with pytest.raises(Undecryptable, match="'new', which is not here"):
        ours.open(theirs, b"k")  # it was read a moment ago
    monkeypatch.setattr(cryptos, "ASK_AGAIN", 0.0)
    assert ours.open(theirs, b"k") == b"b" and key_id(ours.seal(b"c", b"k")) == "new"


def test_keys_grow_old_and_are_read_again_in_the_background() -> None:
    given: list[dict[str, bytes]] = [{"old": OLD}]
    ours = Seal(Keyring(lambda: given[-1], refresh=0.0), "ns", "orders")
    assert key_id(ours.seal(b"a", b"k")) == "old"
    given.append({"new": NEW, "old": OLD})
    eventually(lambda: key_id(ours.seal(b"a", b"k")) == "new")


def test_keys_that_cannot_be_read_again_stay(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Callable[[], Any]] = [lambda: {"old": OLD}]
    ring = Keyring(lambda: answers[-1](), refresh=0.0)
    ours = Seal(ring, "ns", "orders")
    ours.seal(b"a", b"k")

    def away() -> Any:
        raise OSError("the KMS is away")

    answers.append(away)
    eventually(lambda: ours.seal(b"a", b"k") and "the keys that were read before stay" in caplog.text)
    assert "OSError: the KMS is away" in caplog.text
    assert ours.open(ours.seal(b"a", b"k"), b"k") == b"a"


# -- keys


def test_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSTREAM_KEYS", f"new:{NEW64}, old:{OLD64}")
    assert Keyring.env().ids == ["new", "old"]
    monkeypatch.setenv("SHOP_KEYS", f"\nold:{OLD64}\n")
    assert Keyring.env("SHOP_KEYS").ids == ["old"]
    monkeypatch.delenv("SHOP_KEYS")
    ring = Keyring.env("SHOP_KEYS")  # an app that is only imported needs no keys
    with pytest.raises(ConfigError, match="SHOP_KEYS is not set"):
        ring.load()


SECRET = "c2VjcmV0IHRoYXQgbm9ib2R5IHNoYWxsIHNlZS4uLi4="
WRONG: list[tuple[Any, str]] = [
    ({}, "there are no keys"),
    ([("a", OLD)], "there are no keys"),
    ({"a": SECRET[:-4]}, "'a': it must be 32 random bytes, or their base64"),
    ({"a": SECRET + "!"}, "it must be 32 random bytes"),
    ({"a": "schlüssel"}, "it must be 32 random bytes"),
    ({"a": b"short"}, "it must be 32 random bytes"),
    ({"a": 32}, "it must be 32 random bytes"),
    ({"a": None}, "it must be 32 random bytes"),
    ({SECRET: OLD}, "key 1: its id must have"),
    ({"": OLD}, "its id must have"),
    ({"a b": OLD}, "its id must have"),
    ({7: OLD}, "its id must have"),
]


@pytest.mark.parametrize(("keys", "told"), WRONG)
def test_wrong_keys_are_refused_and_not_quoted(keys: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        Keyring(keys)
    with pytest.raises(ConfigError, match=re.escape(told)) as later:
        Keyring(lambda: keys).load()
    for error in (caught.value, later.value):
        assert SECRET[:10] not in full_text(error).split("Error: ", 1)[1] and "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SECRET, "key 1 is not written as id:base64"),
        (f"a:{SECRET} b:{SECRET[:-1]}", "key 2, 'b': it must be"),
        (f"a:{SECRET} a:{OLD64}", "key 2 has the id of an earlier one"),
        ("# nothing", "there are no keys"),
    ],
)
def test_a_wrong_file_is_told_without_what_is_in_it(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        Keyring.file(path).load()
    assert SECRET[:10] not in str(caught.value)
    with pytest.raises(ConfigError, match=r"missing: the keys cannot be read: No such file"):
        Keyring.file(tmp_path / "missing").load()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is no text"):
        Keyring.file(path).load()


def test_keys_are_in_no_repr_and_no_pickle() -> None:
    ring = Keyring({"new": NEW64, "old": OLD})
    assert repr(ring) == "Keyring('new', 'old')" and "not read yet" in repr(Keyring(lambda: {}))
    for how in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="is not pickled"):
            how(ring)  # type: ignore[operator]
    text = f"{ring!r}{seal()!r}{ring.newest.cipher!r}"
    assert NEW64 not in text and repr(NEW)[2:-1] not in text


def test_what_seals_finds_its_keys_where_it_is_declared() -> None:
    ours = seal(stream="sent").register()
    sent = pickle.dumps(ours)
    assert NEW not in sent and NEW64.encode() not in sent
    assert pickle.loads(sent) is ours
    ours = None  # type: ignore[assignment]
    elsewhere = pickle.loads(sent)
    with pytest.raises(ConfigError, match="stream 'ns/sent' is encrypted, and this process has no keys for it"):
        elsewhere.seal(b"a", b"k")
    with pytest.raises(Undecryptable, match="with key 'new', and stream 'ns/sent' is encrypted, and this process"):
        elsewhere.open(seal(stream="sent").seal(b"a", b"k"), b"k")


def test_without_the_package_it_is_said_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from rstream import Keyring\n"
        "try: Keyring({'a': bytes(32)})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "ConfigError encryption needs the package cryptography: pip install 'rstream[crypto]'"
    )


def test_the_largest_event_can_be_sealed() -> None:
    assert LARGEST + 100 < 2**31 - 1  # what AESGCM takes at once


# -- other languages


def test_the_vector_in_the_docs() -> None:
    """Whoever reimplements it can check it by this."""
    text = (Path(__file__).parent.parent / "docs/wire-format.md").read_text("utf-8")
    found = re.search(r"```json\n(\{[^`]*sealed[^`]*\})\n```", text)
    assert found
    vector = json.loads(found[1])
    key, nonce = bytes.fromhex(vector["key"]), bytes.fromhex(vector["nonce"])
    ours = seal({vector["key id"]: key}, vector["namespace"], vector["stream"])
    payload = msgpack.packb(vector["payload"])
    aad = vector["associated data"].encode()
    sealed = bytes.fromhex(vector["sealed"])
    assert cryptos._sealed(ours.ring.newest, nonce, payload, aad) == sealed
    assert ours.open(sealed, vector["k"]) == payload
