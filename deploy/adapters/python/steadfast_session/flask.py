"""`flask.session` for sessions that the proxy keeps."""

from __future__ import annotations

import json

from flask.sessions import SecureCookieSession, SessionInterface, SessionMixin, session_json_serializer
from werkzeug.exceptions import abort
from werkzeug.wrappers import Response

from .attempt import Attempt, Lifecycle
from .contract import Gate, Refused


class SteadfastSession(Lifecycle, SecureCookieSession):
    """The data as a dictionary; what changes is sent with the response, which the client gets once it is stored."""

    def __init__(self, attempt: Attempt):
        super().__init__(session_json_serializer.loads(json.dumps(attempt.before)))
        self.attempt = attempt
        self.new = "sid" not in attempt.claims

    def headers(self) -> list[tuple[str, str]]:
        return self.attempt.headers(json.loads(session_json_serializer.dumps(dict(self))))


class RefusedSession(SessionMixin):
    """The session of a request that did not come through the proxy: whoever touches it ends the request."""

    def __init__(self, refused: Refused):
        self._refused = refused

    def _refuse(self, *args, **kwargs):
        abort(Response(*self._refused.problem()))

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = _refuse
    claims = subject = property(_refuse)
    login = step_up = renew = logout = logout_all = logout_others = no_touch = only_if_unchanged = _refuse


class SteadfastSessions(SessionInterface):
    """For `app.session_interface`.

    `subject` is `lambda session: user id or None`, where logins are to be seen from the data instead of being said.
    """

    null_session_class = RefusedSession

    def __init__(self, audience: str, jwks: str | dict, status: int = 401, subject=None):
        self._gate = Gate(audience, jwks, status)
        self._subject = subject

    def open_session(self, app, request):
        try:
            return SteadfastSession(self._gate.open(request.headers))
        except Refused as refused:
            return RefusedSession(refused)

    def save_session(self, app, session, response):
        if session.accessed:
            response.vary.add("Cookie")
        if self._subject:
            session.attempt.follow(self._subject(session))
        for name, value in session.headers():
            response.headers[name] = value
