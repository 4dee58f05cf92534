"""`request.session` for sessions that the proxy keeps.

    SESSION_ENGINE = "steadfast_session.django"
    MIDDLEWARE = ["steadfast_session.django.SessionMiddleware", ...]  # in the place of Django's
    STEADFAST = {"audience": "shop", "jwks": "http://127.0.0.1:9900/.well-known/jwks.json", "exempt": ["/healthz"]}
"""

from __future__ import annotations

import copy
import time

from django.conf import settings
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions import middleware
from django.contrib.sessions.backends.base import SessionBase
from django.dispatch import receiver
from django.http import HttpResponse
from django.utils.cache import patch_vary_headers

from .attempt import Attempt, Lifecycle
from .contract import Gate, Refused


class SessionStore(Lifecycle, SessionBase):
    """The data as a dictionary; what changes is sent with the response, which the client gets once it is stored."""

    def __init__(self, session_key=None, attempt: Attempt | None = None):
        self.attempt = attempt or Attempt({"st": "none"}, None)
        super().__init__(self.claims.get("sid"))

    def headers(self) -> list[tuple[str, str]]:
        return self.attempt.headers(getattr(self, "_session_cache", None))

    def load(self):
        return copy.deepcopy(self.attempt.before)

    def get_session_cookie_age(self):
        until = self.claims.get("idle_exp")
        return super().get_session_cookie_age() if until is None else max(0, until - int(time.time()))

    def exists(self, session_key):
        return session_key is not None and session_key == self.session_key

    def create(self):
        self.modified = True

    def save(self, must_create=False):
        """Says early whether the data can be sent."""
        self.headers()
        self.modified = True

    def delete(self, session_key=None):
        if session_key is None or session_key == self.session_key:
            self.attempt.logout()

    def cycle_key(self):
        self.attempt.renew()

    async def acycle_key(self):
        self.cycle_key()

    @classmethod
    def clear_expired(cls):
        """The proxy does."""


class SessionMiddleware(middleware.SessionMiddleware):
    """In the place of Django's, as the cookie is the proxy's."""

    def __init__(self, get_response):
        super().__init__(get_response)
        options = dict(settings.STEADFAST)
        self._exempt = frozenset(options.pop("exempt", ()))
        self._gate = Gate(**options)

    def process_request(self, request):
        if request.path_info in self._exempt:
            request.session = self.SessionStore()
            return None
        try:
            request.session = self.SessionStore(attempt=self._gate.open(request.headers))
        except Refused as refused:
            body, status, headers = refused.problem()
            return HttpResponse(body, status=status, headers=headers)
        return None

    def process_response(self, request, response):
        session = getattr(request, "session", None)
        if session is None:
            return response
        if session.accessed:
            patch_vary_headers(response, ("Cookie",))
        # As everywhere in Django a request that failed changes no data; a logout holds.
        if response.status_code < 500 or session.attempt.ends:
            for name, value in session.headers():
                response[name] = value
        return response


@receiver(user_logged_in, dispatch_uid="steadfast_session")
def say_login(sender, request, user, **kwargs):
    session = getattr(request, "session", None)
    if isinstance(session, SessionStore):
        session.login(user._meta.pk.value_to_string(user))
