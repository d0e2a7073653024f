"""Keys, signatures and what is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mm_core.core.errors import InputError
from mm_core.export.signature import check, check_file, make_keys, read_signature, sign, sign_file


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MM_VERIFY_KEY", raising=False)
    path = tmp_path / "keys" / "release.pem"
    make_keys(path)
    monkeypatch.setenv("MM_SIGNING_KEY", str(path))
    return path


def test_the_private_key_is_for_its_owner_alone_and_never_replaced(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="there already"):
        make_keys(key)


def test_the_signature_is_rfc_8032s(key: Path) -> None:
    """Checked by the library's own verifier, not by ours."""
    import base64

    signature = sign(b"words")
    assert signature is not None
    public = serialization.load_pem_public_key(key.with_name("release.pem.pub").read_bytes())
    public.verify(base64.b64decode(signature["signature"]), b"words")  # type: ignore[union-attr,call-arg]


def test_a_changed_byte_or_another_key_is_refused(key: Path, tmp_path: Path, monkeypatch) -> None:
    signature = sign(b"words")
    assert signature and check(b"words", signature) == signature["key"]
    for data, said in ((b"word5", signature), (b"words", signature | {"signature": "AAAA"}), (b"words", {})):
        with pytest.raises(InputError, match="not by the trusted key"):
            check(data, said)
    make_keys(tmp_path / "other")
    monkeypatch.setenv("MM_VERIFY_KEY", (tmp_path / "other.pub").read_text())
    with pytest.raises(InputError, match="not by the trusted key"):
        check(b"words", signature)
    with pytest.raises(InputError, match="no signature"):
        check(b"words", None)


def test_files_are_signed_beside_themselves(key: Path, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    signer = sign_file(file)
    assert check_file(file) == signer and sign_file(file) == signer
    file.with_name("manifest.json.sig").write_text("scribble")
    with pytest.raises(InputError, match=r"manifest\.json\.sig: not a signature"):
        check_file(file)
    file.with_name("manifest.json.sig").unlink()
    monkeypatch.delenv("MM_SIGNING_KEY")
    assert sign_file(file) is None and read_signature(file) is None
    with pytest.raises(InputError, match="MM_VERIFY_KEY"):
        check_file(file)


@pytest.mark.parametrize("text", ["nowhere.pem", "-----BEGIN NONSENSE-----"])
def test_a_key_that_is_none_is_named_without_being_shown(text: str, monkeypatch) -> None:
    monkeypatch.setenv("MM_SIGNING_KEY", text)
    with pytest.raises(InputError, match="MM_SIGNING_KEY") as error:
        sign(b"words")
    assert text not in str(error.value)


def test_no_secret_in_the_signature(key: Path) -> None:
    secret = key.read_text().splitlines()[1]
    assert secret not in json.dumps(sign(b"words"))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b"null",
        b"{}",
        b'{"algorithm": "Ed25519", "key": "' + b"0" * 16 + b'", "signature": 1}',
        b'{"algorithm": "none", "key": "' + b"0" * 16 + b'", "signature": "' + b"A" * 86 + b'=="}',
        b'{"algorithm": "Ed25519", "key": "\\u001b[2J\\n", "signature": "' + b"A" * 86 + b'=="}',
        b'{"algorithm": "Ed25519", "key": ["a"], "signature": NaN}',
        b" " * (1 << 20),
    ],
)
def test_a_hostile_signature_is_refused_in_one_line(key: Path, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    beside = tmp_path / "manifest.json.sig"
    beside.write_bytes(text)
    with pytest.raises(InputError, match=r"manifest\.json\.sig: not a signature") as error:
        check_file(file)
    assert str(error.value).isprintable()
    assert sign_file(file) == check_file(file), "signing again replaces it"


def test_a_signature_that_is_no_file_is_refused(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    (tmp_path / "manifest.json.sig").mkdir()
    with pytest.raises(InputError, match="not a signature"):
        check_file(file)
    for wrong in ([], "x", 1):
        with pytest.raises(InputError, match="no signature"):
            check(b"words", wrong)  # type: ignore[arg-type]
