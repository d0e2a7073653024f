"""`mm gallery`: serve the page until Ctrl-C, to this machine or, with a token, to the network."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from pathlib import Path

import uvicorn

from mm_core.core.errors import InputError
from mm_core.core.ports import require_free_port
from mm_core.gallery.application import application
from mm_core.gallery.library import Library
from mm_core.pinned_inputs import Run

NOT_CHECKED = "its signature is not checked: set MM_VERIFY_KEY to the signer's public key"
LOOPBACK = ("127.0.0.1", "localhost")


def bundle_of(run: Run, name: str) -> Path:
    """Return the folder of a bundle: a folder, `champion`, or a registry version; raise InputError if none exists."""
    if Path(name).is_dir():
        return Path(name)
    tags = run.registry.tags(name)
    folder = run.layout.bundles / tags["bundle"] if tags and tags.get("bundle") else None
    if folder is None or not (folder / "manifest.json").is_file():
        raise InputError(f"--model {name}: no bundle of it here; run a cycle (`mm run`), or name a bundle's folder")
    return folder


def serve(run: Run, gallery: Path, moments: Path, *, model: str, host: str, port: int) -> None:
    """Serve until interrupted. Outside of loopback a token is required: `MM_GALLERY_TOKEN`, or a new printed one."""
    layout = run.layout
    if "://" in layout.settings.inbox:
        raise InputError(f"mm gallery writes feedback to a folder, not to {layout.settings.inbox}: set MM_INBOX to one")
    library = Library(
        gallery, moments, bundle_of(run, model), layout.root / "gallery-uploads", run.params.ingest.max_pixels
    )
    print(f"Model    {library.manifest['version']}, " + (f"signed by {s}" if (s := library.signed_by) else NOT_CHECKED))
    open_to_all = host not in LOOPBACK
    if not open_to_all:
        require_free_port(port)
    secret = (os.environ.get("MM_GALLERY_TOKEN") or secrets.token_urlsafe(24)) if open_to_all else None
    app = application(library, run.catalog, Path(layout.settings.inbox), layout.settings.onnxruntime_web, secret)
    if secret:
        shown = _address() if _is_any(host) else host
        print(f"Gallery  http://{shown}:{port}/?token={secret}", flush=True)
        print("Everyone with this address can see the photos; transfers are not encrypted.", flush=True)
    else:
        print(f"Gallery  http://127.0.0.1:{port}/", flush=True)
    # No access log: it would contain the token.
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, proxy_headers=False)


def _is_any(host: str) -> bool:
    """Return whether a host address means all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _address() -> str:
    """Return this machine's address in its network."""
    # Connecting a datagram socket selects an interface and sends no packet.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
