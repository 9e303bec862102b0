"""A signature as `model-signing` (OpenSSF) makes it: by a public key, offline; or by a Sigstore identity, for which Sigstore's servers are asked.

Signatures over shards are refused: model-signing 1.1 makes them, but cannot read its own back.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kfp_components import uris
from kfp_components.artifact.content import Away, Reading, Unreadable
from kfp_components.request import ArtifactRules, Signature

MOST_MIB = 64
"""Of a signature, which lists every file."""


def file_of(given: Signature, readers: Mapping[str, Any], rules: ArtifactRules, folder: Path) -> Path:
    """The signature's file, here or downloaded into ``folder``. Raises `Unreadable` or `Away`, saying that it is the signature."""
    scheme = urlsplit(given.uri).scheme
    reader = readers.get(scheme)
    shown = f"its signature {uris.shown(given.uri)}"
    if reader is None or scheme == "oci":
        raise Unreadable(f"{shown}: {scheme}:// cannot be read here")
    reading = Reading(uris.shown(given.uri), rules.model_copy(update={"max_download_mib": MOST_MIB}))
    find: Callable[[str, Reading], Any] = reader.find
    kept = folder / "signature"
    try:
        found = find(given.uri, reading)
        if not found.single:
            raise Unreadable("it is a folder")
        if found.root is not None:
            return Path(found.root)
        reading.digest_of(found, kept)
    except Unreadable as error:
        raise Unreadable(f"{shown}: {error}") from error
    except Away as error:
        raise Away(f"{shown}: {error}") from error
    return kept


def verify(given: Signature, signed: Path, artifact: Path) -> str:
    """Returns whose it is. Raises ValueError when it does not hold, `Unreadable` without model-signing."""
    try:
        from model_signing import verifying  # the extra `signing`
    except ImportError:
        raise Unreadable("model-signing is not installed here; install kfp-serving-components[signing]") from None
    config = verifying.Config()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="kfp-serving-key-") as folder:
        if given.public_key is not None:
            key = Path(folder) / "key.pem"
            key.write_text(given.public_key, encoding="utf-8")
            told = f"public key {hashlib.sha256(given.public_key.encode()).hexdigest()[:12]}"
        else:
            told = f"{given.identity} by {given.oidc_issuer}"
        try:
            if given.public_key is not None:
                config.use_elliptic_key_verifier(public_key=key)
            else:
                config.use_sigstore_verifier(identity=str(given.identity), oidc_issuer=str(given.oidc_issuer))
            config.verify(artifact, signed)
        except Exception as error:  # model-signing raises what its parts raise: ValueError, InvalidSignature, JSON and key errors
            raise ValueError((str(error) or type(error).__name__)[:400]) from error
    return told
