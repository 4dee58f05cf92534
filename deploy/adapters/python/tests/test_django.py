import asyncio
import time
import unittest

from steadfast_session.testing import Signer
from tests.said import said

try:
    import django
except ImportError:
    django = None

if django:
    from django.conf import settings

    SIGNER = Signer()
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
        SECRET_KEY="a test's, and no secret",
        SESSION_ENGINE="steadfast_session.django",
        STEADFAST={"audience": "shop", "jwks": SIGNER.jwks, "exempt": ["/healthz"]},
        USE_TZ=True,
    )
    django.setup()

    from django.contrib import auth
    from django.core.management import call_command
    from django.http import HttpResponse
    from django.test import RequestFactory
    from steadfast_session.django import SessionMiddleware, SessionStore

AUTH = {"st": "auth", "sid": "reference", "sub": "1", "ver": 4}


def setUpModule():
    if django:
        call_command("migrate", verbosity=0)


@unittest.skipUnless(django, "Django is not installed")
class DjangoSessions(unittest.TestCase):
    def answer(self, act, claims=None, headers=None, path="/", status=200):
        """What a view answers to a request with these claims."""

        def view(request):
            act(request)
            return HttpResponse(status=status)

        self.sent = SIGNER.headers(claims) if headers is None else headers
        meta = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in self.sent.items()}
        return SessionMiddleware(view)(RequestFactory().get(path, **meta))

    def said(self, act, claims=None, **options):
        return said(self.answer(act, claims, **options), self.sent)

    def user(self, name):
        return auth.get_user_model().objects.get_or_create(username=name)[0]

    def test_a_session_is_its_data(self):
        until = int(time.time()) + 60

        def act(request):
            session = request.session
            self.assertEqual(dict(session.items()), {"cart": [1], "inner": {"a": 1}})
            self.assertEqual((session.session_key, session.subject), ("reference", "1"))
            self.assertTrue(session.exists("reference") and not session.exists("another"))
            self.assertAlmostEqual(session.get_expiry_age(), 60, delta=2)
            session["inner"]["a"] = 2
            session["visits"] = 1
            del session["cart"]
            session.save()

        claims = {**AUTH, "idle_exp": until, "d": {"cart": [1], "inner": {"a": 1}}}
        self.assertEqual(self.said(act, claims), (None, {"cart": None, "inner": {"a": 2}, "visits": 1}))

    def test_a_session_that_is_only_read_says_nothing(self):
        response = self.answer(lambda request: request.session["cart"], {**AUTH, "d": {"cart": [1]}})
        self.assertEqual(said(response, self.sent), (None, None))
        self.assertEqual((response["Vary"], dict(response.cookies)), ("Cookie", {}))
        self.assertNotIn("Vary", self.answer(lambda request: None))

    def test_a_session_begins_with_its_data(self):
        said = self.said(lambda request: request.session.setdefault("cart", []).append(1))
        self.assertEqual(said, (None, {"cart": [1]}))

    def test_requests_past_the_proxy_are_refused(self):
        response = self.answer(lambda request: self.fail("it was let through"), headers={})
        self.assertEqual((response.status_code, response["Content-Type"]), (401, "application/problem+json"))
        response = self.answer(lambda request: self.assertEqual(request.session.get("a"), None), headers={}, path="/healthz")
        self.assertEqual(response.status_code, 200)
        with self.assertRaises(ValueError):
            self.answer(lambda request: request.session.update({"a": 1}), headers={}, path="/healthz")
        with self.assertRaises(ValueError):
            store = SessionStore()
            store["a"] = 1
            store.save()

    def test_a_login_of_django_is_said(self):
        alice, bob = self.user("alice"), self.user("bob")

        def login(user):
            return lambda request: auth.login(request, user, "django.contrib.auth.backends.ModelBackend")

        op, patch = self.said(login(alice), {"st": "anon", "sid": "reference", "ver": 1, "d": {"cart": [1]}})
        self.assertEqual(op, f'login;sub="{alice.pk}";rid="RID"')
        self.assertEqual((patch["_auth_user_id"], "cart" in patch), (str(alice.pk), False))
        alices = {**AUTH, "sub": str(alice.pk), "d": {"cart": [1], **patch}}
        op, patch = self.said(login(bob), alices)
        self.assertEqual(op, f'login;sub="{bob.pk}";carry="";rid="RID"')
        self.assertEqual((patch["_auth_user_id"], "_auth_user_backend" in patch), (str(bob.pk), True))

        def act(request):
            self.assertEqual(auth.get_user(request), alice)

        self.assertEqual(self.said(act, alices), (None, None))

    def test_a_login_says_what_was_shown(self):
        def act(request):
            auth.login(request, self.user("alice"), "django.contrib.auth.backends.ModelBackend")
            request.session.step_up(acr="mfa", amr=["pwd", "otp"])

        self.assertRegex(self.said(act)[0], r'^login;sub="\d+";acr="mfa";amr="pwd otp";rid="RID"$')

    def test_a_logout_of_django_is_said_even_if_the_request_fails(self):
        claims = {**AUTH, "d": {"cart": [1]}}
        for status in [200, 500]:
            self.assertEqual(self.said(auth.logout, claims, status=status), ('logout;rid="RID"', None))
        self.assertEqual(self.said(lambda request: request.session.clear(), claims, status=500), (None, None))

    def test_another_key_is_another_cookie(self):
        claims = {**AUTH, "d": {"cart": [1]}}
        self.assertEqual(self.said(lambda request: request.session.cycle_key(), claims), ('renew;rid="RID"', None))
        self.assertEqual(self.said(lambda request: request.session.cycle_key()), (None, None))

    @unittest.skipUnless(django and hasattr(SessionStore, "aflush"), "this Django has no such methods")
    def test_asynchronous_methods_do_the_same(self):
        claims = {**AUTH, "d": {"cart": [1]}}
        for name, op in [("acycle_key", 'renew;rid="RID"'), ("aflush", 'logout;rid="RID"')]:
            said = self.said(lambda request: asyncio.run(getattr(request.session, name)()), claims)
            self.assertEqual(said, (op, None))

    def test_what_cannot_be_sent_is_an_error(self):
        with self.assertRaises(ValueError):
            self.said(lambda request: request.session.update({"large": "x" * 20_000}))

    def test_expired_sessions_are_the_proxys(self):
        self.assertIsNone(SessionStore.clear_expired())


if __name__ == "__main__":
    unittest.main()
