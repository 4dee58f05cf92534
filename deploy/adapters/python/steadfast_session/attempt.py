"""One request's attempt at a session, and the directives that its response sends to the proxy."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote

MOST_PATCH_BYTES = 16 * 1024


class Attempt:
    def __init__(self, claims: dict, nonce: str | None):
        self.claims = claims
        self.nonce = nonce
        self._turn = None
        self._parameters = {}
        # The data that goes along with a login, by key; none: as the proxy decides.
        self._carry = None
        self._is_cleared = False
        self._also = []
        self._only_if = False
        self.loaded(claims.get("d", {}), claims.get("ver"))

    def loaded(self, data: dict, version: int | None) -> None:
        self.before = data
        self.version = version

    def login(self, subject, acr=None, amr=None, carry=None) -> None:
        if subject is None or subject == "":
            raise ValueError("a login needs a subject")
        is_other = self.claims.get("sub", str(subject)) != str(subject)
        # The proxy gives no user what another has left.
        self._rotate("login", {"sub": str(subject), "acr": acr, "amr": _words(amr)}, () if is_other else carry)

    def step_up(self, acr=None, amr=None, carry=None) -> None:
        self._needs_login()
        turn, so_far = (self._turn, self._parameters) if self._rotates else ("step-up", {})
        shown = {"acr": acr or so_far.get("acr"), "amr": _words(amr) or so_far.get("amr")}
        self._rotate(turn, {**so_far, **shown}, carry)

    def _rotate(self, turn, parameters, carry) -> None:
        self._carry = self._carry if carry is None else _words(carry)
        self._turn, self._parameters = turn, parameters

    def renew(self) -> None:
        """Another cookie for the same session; without a session there is nothing to renew."""
        if self.claims.get("sid") and self._turn is None:
            self._turn = "renew"

    def logout(self, turn="logout") -> None:
        self._turn, self._parameters = turn, {}
        self._carry = []
        self._is_cleared = True

    def logout_others(self) -> None:
        self._needs_login()
        self._add("logout-others")

    def no_touch(self) -> None:
        self._add("no-touch")

    def only_if_unchanged(self) -> None:
        self._only_if = True

    def follow(self, subject) -> None:
        """Who the application says the user is, where it did not say so by a login or logout."""
        if self._rotates or self.ends:
            return
        if subject is None or subject == "":
            if "sub" in self.claims:
                self.logout()
        elif str(subject) != self.claims.get("sub"):
            self.login(subject)

    def headers(self, after: dict | None) -> list[tuple[str, str]]:
        """What the response says, for data that is like this now; none: it was not looked at."""
        headers = []
        operations = self._operations()
        patch = self._patch(after)
        if operations:
            headers.append(("Steadfast-Session-Op", ", ".join(operations)))
        if patch:
            headers.append(("Steadfast-Session-Patch", f"{self.nonce}.{patch}"))
        if headers and self.nonce is None:
            raise ValueError("the proxy sent no Steadfast-Session-Request: this session is read only")
        if headers and self._only_if:
            headers.append(("Steadfast-Session-If", str(self.version)))
        return headers

    def _operations(self) -> list[str]:
        operations = [_item(name, {"rid": self.nonce}) for name in self._also]
        if self._turn:
            carry = self._carry if self._rotates else None
            operations.insert(0, _item(self._turn, {**self._parameters, "carry": carry, "rid": self.nonce}))
        return operations

    def _patch(self, after) -> str | None:
        if after is None or self.ends:
            return None
        after = json.loads(json.dumps(after, allow_nan=False))
        is_narrowed = self._rotates and self._carry is not None
        patch = self._patch_of_carried(after) if is_narrowed else diff(self.before, after)
        encoded = json.dumps(patch, ensure_ascii=False, separators=(",", ":")).encode()
        if len(encoded) > MOST_PATCH_BYTES:
            raise ValueError("the session changes by more than 16 KiB")
        return base64.urlsafe_b64encode(encoded).decode().rstrip("=") if patch else None

    def _patch_of_carried(self, after: dict) -> dict:
        carried = {key: value for key, value in self.before.items() if key in self._carry}

        def is_new(key):
            return self._is_cleared or key in carried or key not in self.before or not _same(self.before[key], after[key])

        return diff(carried, {key: value for key, value in after.items() if is_new(key)})

    def _add(self, name) -> None:
        if name not in self._also:
            self._also.append(name)

    @property
    def _rotates(self) -> bool:
        return self._turn in ("login", "step-up")

    @property
    def ends(self) -> bool:
        """Whether the session is over with the response."""
        return self._turn in ("logout", "logout-all")

    def _needs_login(self) -> None:
        if self._turn != "login" and (self.claims.get("st") != "auth" or self.ends):
            raise ValueError("nobody is logged in")


class Lifecycle:
    """What an application can do to its session; for mappings of the session's data, with its `attempt`."""

    attempt: Attempt

    @property
    def claims(self) -> dict:
        """What the proxy says of the session."""
        return self.attempt.claims

    @property
    def subject(self) -> str | None:
        """Who is logged in, as of the request."""
        return self.claims.get("sub")

    def login(self, subject, *, acr=None, amr=None, carry=None) -> None:
        """Somebody has shown who they are: a new session under a new cookie.

        Of the old one's data it has the keys named in `carry`, and what this request changes.
        """
        self.attempt.login(subject, acr, amr, carry)

    def step_up(self, *, acr=None, amr=None, carry=None) -> None:
        """The same user has shown more."""
        self.attempt.step_up(acr, amr, carry)

    def renew(self) -> None:
        self.attempt.renew()

    def logout(self) -> None:
        self.attempt.logout()
        self.clear()

    def logout_all(self) -> None:
        """Ends all sessions of the user."""
        self.attempt.logout("logout-all")
        self.clear()

    def logout_others(self) -> None:
        """Ends all sessions of the user but this one."""
        self.attempt.logout_others()

    def no_touch(self) -> None:
        """This request does not count as use."""
        self.attempt.no_touch()

    def only_if_unchanged(self) -> None:
        """The client gets 409, and nothing is written, if another request has changed the data meanwhile."""
        self.attempt.only_if_unchanged()


def diff(before: dict, after: dict) -> dict:
    """The merge patch (RFC 7396). None in an object is the same as no member, as patches cannot say it."""
    patch = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            inner = diff(old, value)
            if inner:
                patch[key] = inner
        elif not _same(old, value):
            patch[key] = value
    return patch


def _same(one, other) -> bool:
    # To Python 1 == True == 1.0, in JSON they differ.
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _words(names) -> list[str] | None:
    if names is None:
        return None
    words = names.split() if isinstance(names, str) else [str(name) for name in names]
    if not all(re.fullmatch(r"\S+", word) for word in words):
        raise ValueError("names in `carry` and `amr` have no spaces")
    return words


def _item(name: str, parameters: dict) -> str:
    """An item of a list of RFC 9651."""
    given = [f"{key}={_quoted(value)}" for key, value in parameters.items() if value is not None]
    return ";".join([name, *given])


def _quoted(value) -> str:
    """A String of RFC 9651, or a Display String where one cannot say it."""
    text = " ".join(value) if isinstance(value, list) else str(value)
    if re.fullmatch(r"[ -~]*", text):
        return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return '%"' + re.sub(r"%..", lambda octet: octet[0].lower(), quote(text, safe="")) + '"'
