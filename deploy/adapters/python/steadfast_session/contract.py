"""What a request through the proxy brings: a session signed by one of the proxy's keys."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import threading
import time
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

from .attempt import Attempt

JWKS_PATH = "/.well-known/jwks.json"
ANSWER_WITHIN = 1.0
FETCH_EVERY = 1.0
SKEW = 30
TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(Exception):
    """A request that is not served, with the status that says so."""

    def __init__(self, detail: str, status: int):
        super().__init__(detail)
        self.status = status

    def problem(self) -> tuple[str, int, dict[str, str]]:
        """The body, the status and the headers of the answer."""
        headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Steadfast"
        title = HTTPStatus(self.status).phrase
        body = {"type": "about:blank", "title": title, "status": self.status, "detail": str(self)}
        return json.dumps(body), self.status, headers


class Keys:
    """The proxy's public keys by `kid`: a key set, or where to fetch it (a URL, or `unix:` and the path of a socket)."""

    def __init__(self, source: str | dict):
        self._source = source if isinstance(source, str) else None
        self._known = {} if self._source else _keys_of(source)
        self._lock = threading.Lock()
        self._fetched_at = float("-inf")
        self._failed = False

    def find(self, kid):
        if kid not in self._known and self._source:
            with self._lock:
                self._refetch(kid)
        return self._known.get(kid)

    def _refetch(self, kid):
        # Whoever asks again too soon shares the last answer: unknown keys cost one request a second, however many.
        if kid not in self._known and time.monotonic() - self._fetched_at >= FETCH_EVERY:
            self._fetched_at = time.monotonic()
            self._failed = not self._fetch()
        if self._failed:
            raise Refused("the proxy's keys cannot be had", HTTPStatus.SERVICE_UNAVAILABLE)

    def _fetch(self) -> bool:
        try:
            path = JWKS_PATH if self._source.startswith("unix:") else ""
            self._known = _keys_of(_get_json(self._source, path))
        except UNREACHABLE:
            return False
        return True


def _keys_of(jwks: dict) -> dict:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    ours = [jwk for jwk in jwks["keys"] if (jwk.get("kty"), jwk.get("crv")) == ("OKP", "Ed25519")]
    return {jwk["kid"]: Ed25519PublicKey.from_public_bytes(_decode(jwk["x"])) for jwk in ours}


class Gate:
    """Lets through what the proxy has signed for this audience.

    `audience` is the name of the pool, `jwks` the proxy's keys or where they are, `status` what requests get that did
    not come through the proxy.
    """

    def __init__(self, audience: str, jwks: str | dict, status: int = HTTPStatus.UNAUTHORIZED):
        if not audience or not jwks:
            raise ValueError("`audience` (the name of the pool) and `jwks` are needed")
        self._audience = audience
        self._keys = Keys(jwks)
        self._status = status

    def open(self, headers) -> Attempt:
        """The attempt that a request with these headers is."""
        claims = self._verify(headers.get("Steadfast-Session") or "")
        nonce = headers.get("Steadfast-Session-Request") or ""
        attempt = Attempt(claims, nonce if NONCE.fullmatch(nonce) else None)
        if claims.get("d_ref"):
            load(attempt)
        return attempt

    def _verify(self, token: str) -> dict:
        match = TOKEN.fullmatch(token) or self._refuse("there is none")
        header, payload, signature = match.groups()
        about = self._parse(header)
        kind = (about.get("alg"), about.get("typ"), "crit" in about)
        if kind != ("EdDSA", "steadfast-session+jwt", False):
            self._refuse("it is of another kind")
        key = self._keys.find(str(about.get("kid"))) or self._refuse("its key is not the proxy's")
        if not _is_signed(key, signature, f"{header}.{payload}"):
            self._refuse("its signature is wrong")
        claims = self._parse(payload)
        if claims.get("aud") != self._audience:
            self._refuse("it is for another audience")
        if not claims.get("iat", float("inf")) - SKEW <= time.time() < claims.get("exp", float("-inf")) + SKEW:
            self._refuse("it is not of this minute")
        return claims

    def _parse(self, part: str) -> dict:
        try:
            value = json.loads(_decode(part))
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else self._refuse("it is no JSON")

    def _refuse(self, reason: str):
        raise Refused(f"no valid Steadfast-Session: {reason}", self._status)


def _is_signed(key, signature: str, signed: str) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(_decode(signature), signed.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def load(attempt: Attempt) -> None:
    """Reads the session's data as it is now."""
    api = attempt.claims.get("api")
    if not api or not attempt.nonce:
        raise Refused("the session's data is out of reach: no side API", HTTPStatus.SERVICE_UNAVAILABLE)
    try:
        answer = _get_json(api, "/v1/session", {"Authorization": f"Steadfast {attempt.nonce}"})
        attempt.loaded(answer["data"], answer.get("meta", {}).get("ver"))
    except UNREACHABLE as error:
        raise Refused("the session's data cannot be had", HTTPStatus.SERVICE_UNAVAILABLE) from error


UNREACHABLE = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str):
        super().__init__("localhost", timeout=ANSWER_WITHIN)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(base: str, path: str) -> tuple[http.client.HTTPConnection, str]:
    if base.startswith("unix:"):
        return _UnixConnection(base[len("unix:") :]), path
    url = urlsplit(urljoin(base, path))
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname, url.port, timeout=ANSWER_WITHIN), url.path


def _get_json(base: str, path: str, headers: dict[str, str] | None = None):
    connection, path = _connection(base, path)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise OSError(f"the answer was {response.status}")
    return json.loads(body)
