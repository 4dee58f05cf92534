"""Stands in for the proxy in the tests of an application."""

from __future__ import annotations

import base64
import json
import os
import time


class Signer:
    def __init__(self, audience: str = "shop", kid: str | None = None):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.generate()
        self.audience = audience
        self.kid = kid or _encode(os.urandom(8))

    @property
    def jwks(self) -> dict:
        """For the option `jwks`."""
        from cryptography.hazmat.primitives import serialization

        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        public = _encode(self._key.public_key().public_bytes(*raw))
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": public}]}

    def token(self, claims: dict | None = None, header: dict | None = None) -> str:
        """A token; without claims that of a request without a session."""
        now = int(time.time())
        defaults = {"iss": "steadfast", "aud": self.audience, "iat": now, "exp": now + 60, "st": "none", "ver": 0}
        head = {"alg": "EdDSA", "typ": "steadfast-session+jwt", "kid": self.kid, **(header or {})}
        parts = head, {**defaults, **(claims or {})}
        signed = ".".join(_encode(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{_encode(self._key.sign(signed.encode()))}"

    def headers(self, claims: dict | None = None) -> dict[str, str]:
        """The headers that the proxy adds to a request."""
        return {"Steadfast-Session": self.token(claims), "Steadfast-Session-Request": _encode(os.urandom(16))}


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
