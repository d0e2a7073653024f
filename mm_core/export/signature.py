"""Detached Ed25519 signatures (RFC 8032, by `cryptography`) of released bundles and of overrides.

`MM_SIGNING_KEY` is a private key in PEM or the path of such a file, `MM_VERIFY_KEY` a public one. Without
`MM_VERIFY_KEY`, the public part of the signing key verifies. Keys never enter a report or a log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mm_core.core.errors import InputError, StoreError
from mm_core.core.records import write_bytes, write_json
from mm_core.storage.retry import disk_faults_of

UNSIGNED = "UNSIGNED: set MM_SIGNING_KEY (`mm keys FILE` makes one) and export again"
SUFFIX = ".sig"
# Forms of the fields: values from a foreign file are shown to people only if they match.
_FORMS = {
    "algorithm": re.compile(r"Ed25519"),
    # 8 bytes in hexadecimal digits, and 64 bytes in base64.
    "key": re.compile(r"[0-9a-f]{16}"),
    "signature": re.compile(r"[A-Za-z0-9+/]{86}=="),
}
_BYTES = 4096
"""Largest size of a `.sig` file; ours have about 200 bytes."""


def make_keys(path: Path) -> str:
    """Write a new private key (mode 0600) and `<path>.pub`; return the fingerprint; raise InputError if one exists."""
    public_path = path.with_name(f"{path.name}.pub")
    for file in (path, public_path):
        if os.path.lexists(file):
            raise InputError(f"{file} is there already: name another file")
    # An existing key is never replaced: bundles signed with it could no longer be verified.
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    # Mode 0600 from the start, so that others can never read the key; O_EXCL refuses an existing file.
    stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    try:
        with disk_faults_of(path):
            with stream:
                stream.write(private)
            write_bytes(public_path, public)
    except StoreError:
        path.unlink(missing_ok=True)  # a private key without its public part is useless
        raise
    return fingerprint(key.public_key())


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the sha256 of the raw public key, first 16 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(data: bytes) -> dict[str, str] | None:
    """Return the signature of `data` as JSON values (algorithm, key, signature); None without a configured key."""
    text = os.environ.get("MM_SIGNING_KEY")
    if not text:
        return None
    key = _private(text)
    signature = base64.b64encode(key.sign(data)).decode()
    return {"algorithm": "Ed25519", "key": fingerprint(key.public_key()), "signature": signature}


def check(data: bytes, signature: dict[str, str] | None) -> str:
    """Return the trusted key's fingerprint if it signed `data`; raise InputError otherwise, or without a key."""
    key = _trusted()
    if not isinstance(signature, dict):
        raise InputError("there is no signature: sign with MM_SIGNING_KEY")
    try:
        key.verify(base64.b64decode(str(signature.get("signature")), validate=True), data)
    except (InvalidSignature, ValueError):
        raise InputError(
            f"the signature (key {str(signature.get('key'))[:16]!r}) is not by the trusted key {fingerprint(key)}: "
            "do not use the signed content, or set MM_VERIFY_KEY to the signer's public key"
        ) from None
    return fingerprint(key)


def sign_file(path: Path) -> str | None:
    """Write `<path>.sig` next to a file; return the key's fingerprint, or None without a configured key."""
    signature = sign(path.read_bytes())
    sidecar = path.with_name(path.name + SUFFIX)
    if signature is None:
        return None
    try:
        # An identical signature is kept, so that a repeated export changes no file.
        present = read_signature(path)
    except InputError:
        present = None
    if present != signature:
        write_json(sidecar, signature)
    return signature["key"]


def read_signature(path: Path) -> dict[str, str] | None:
    """Return algorithm, key and signature from `<path>.sig`; None if the file is missing.

    Raises InputError unless the file has the form that `sign` writes. The returned values are safe to show.
    """
    sidecar = path.with_name(path.name + SUFFIX)
    # A link to a missing file is a damaged signature, not a missing one.
    if not sidecar.exists() and not sidecar.is_symlink():
        return None
    content: object = None
    # A foreign file is read only up to the size of a signature.
    if sidecar.is_file() and sidecar.stat().st_size <= _BYTES:
        try:
            content = json.loads(sidecar.read_bytes())
        except (ValueError, RecursionError):
            content = None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), str) and form.fullmatch(content[name]) for name, form in _FORMS.items()
    ):
        raise InputError(f"{sidecar}: not a signature; fetch the bundle again")
    return {name: content[name] for name in _FORMS}


def can_verify() -> bool:
    """Return whether a verification key is configured."""
    return bool(os.environ.get("MM_VERIFY_KEY") or os.environ.get("MM_SIGNING_KEY"))


def check_file(path: Path) -> str:
    """Check a file against its `.sig`; returns and raises like `check`, and the error names the file."""
    data, signature = path.read_bytes(), read_signature(path)
    try:
        return check(data, signature)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def signature_fault(path: Path) -> str:
    """Return what is wrong with a file's signature; "" where it is right, absent, or cannot be checked here.

    Without a key only the form is checked. A signature that names another key than the configured one is taken for
    that of another signer, unless the configured key made it.
    """
    try:
        signature = read_signature(path)
        if signature is None or not can_verify():
            return ""
        own = fingerprint(_trusted())
    except InputError as error:
        return str(error)
    try:
        check(path.read_bytes(), signature)
    except InputError as error:
        return f"{path}: {error}" if signature["key"] == own else ""
    return "" if signature["key"] == own else f"{path.name + SUFFIX} names another key than the one that signed"


def _trusted() -> Ed25519PublicKey:
    # An explicit public key takes precedence over the signing key.
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
