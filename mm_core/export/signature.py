"""Detached Ed25519 signatures (RFC 8032, by `cryptography`): who released a bundle, who overrode a verdict.

`MM_SIGNING_KEY` is a private key in PEM or the path of such a file, `MM_VERIFY_KEY` a public one; the public part of
the signing key verifies where no other is named. Keys never reach a report or a log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mm_core.core.errors import InputError, StoreError
from mm_core.core.records import write_bytes, write_json
from mm_core.storage.retry import disk_faults_of

UNSIGNED = "UNSIGNED: set MM_SIGNING_KEY (`mm keys FILE` makes one) and export again"
SUFFIX = ".sig"
_FORMS = {
    "algorithm": re.compile(r"Ed25519"),
    "key": re.compile(r"[0-9a-f]{16}"),
    "signature": re.compile(r"[A-Za-z0-9+/]{86}=="),
}
_BYTES = 4096
"""Of a `.sig`; ours have about 200."""


def make_keys(path: Path) -> str:
    """Writes a new private key (mode 0600) and `<path>.pub`; returns the key's fingerprint. Never replaces a file."""
    public_path = path.with_name(f"{path.name}.pub")
    for file in (path, public_path):
        if file.exists():
            raise InputError(f"{file} is there already: name another file")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    try:
        with disk_faults_of(path):
            with stream:
                stream.write(private)
            write_bytes(public_path, public)
    except StoreError:
        path.unlink(missing_ok=True)  # half a pair is none
        raise
    return fingerprint(key.public_key())


def fingerprint(key: Ed25519PublicKey) -> str:
    """sha256 of the raw public key, first 16 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(data: bytes) -> dict[str, str] | None:
    """The signature of `data` as JSON values (algorithm, key, signature), or None where no key is configured."""
    text = os.environ.get("MM_SIGNING_KEY")
    if not text:
        return None
    key = _private(text)
    signature = base64.b64encode(key.sign(data)).decode()
    return {"algorithm": "Ed25519", "key": fingerprint(key.public_key()), "signature": signature}


def check(data: bytes, signature: dict[str, str] | None) -> str:
    """Fingerprint of the trusted key that signed `data`; raises InputError where none did, or no key is configured."""
    key = _trusted()
    if not isinstance(signature, dict):
        raise InputError("there is no signature: sign with MM_SIGNING_KEY")
    try:
        key.verify(base64.b64decode(str(signature.get("signature")), validate=True), data)
    except (InvalidSignature, ValueError):
        raise InputError(
            f"the signature (key {str(signature.get('key'))[:16]!r}) is not by the trusted key {fingerprint(key)}: "
            "do not use what it came with, or set MM_VERIFY_KEY to the signer's public key"
        ) from None
    return fingerprint(key)


def sign_file(path: Path) -> str | None:
    """Writes `<path>.sig` beside a file; returns the key's fingerprint, None where no key is configured."""
    signature = sign(path.read_bytes())
    beside = path.with_name(path.name + SUFFIX)
    if signature is None:
        return None
    try:
        present = read_signature(path)
    except InputError:
        present = None
    if present != signature:
        write_json(beside, signature)
    return signature["key"]


def read_signature(path: Path) -> dict[str, str] | None:
    """Return algorithm, key and signature from `<path>.sig`, None where there is none.

    Raises InputError where it is not of the form that `sign` gives: what is returned is safe to show.
    """
    beside = path.with_name(path.name + SUFFIX)
    if not beside.exists() and not beside.is_symlink():
        return None
    found: Any = None
    if beside.is_file() and beside.stat().st_size <= _BYTES:
        try:
            found = json.loads(beside.read_bytes())
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name), str) and form.fullmatch(found[name]) for name, form in _FORMS.items()
    ):
        raise InputError(f"{beside}: not a signature; fetch the bundle again")
    return {name: found[name] for name in _FORMS}


def can_verify() -> bool:
    """Return whether a key to verify with is configured."""
    return bool(os.environ.get("MM_VERIFY_KEY") or os.environ.get("MM_SIGNING_KEY"))


def check_file(path: Path) -> str:
    """As `check`, for a file and its `.sig`."""
    return check(path.read_bytes(), read_signature(path))


def _trusted() -> Ed25519PublicKey:
    if text := os.environ.get("MM_VERIFY_KEY"):
        try:
            key = serialization.load_pem_public_key(_pem("MM_VERIFY_KEY", text))
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError("MM_VERIFY_KEY is not an Ed25519 public key in PEM: give `<key>.pub` of `mm keys`")
        return key
    if text := os.environ.get("MM_SIGNING_KEY"):
        return _private(text).public_key()
    raise InputError("no key to verify with: set MM_VERIFY_KEY to the signer's public key (PEM or path)")


def _private(text: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_pem("MM_SIGNING_KEY", text), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("MM_SIGNING_KEY is not an Ed25519 private key in PEM without a password: `mm keys FILE`")
    return key


def _pem(name: str, text: str) -> bytes:
    if "-----BEGIN" in text:
        return text.encode()
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"{name} is neither a PEM text nor the path of a file")
    return path.read_bytes()
