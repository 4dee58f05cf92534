import datetime
import unittest

from steadfast_session.testing import Signer
from tests.said import said

try:
    import flask
    from steadfast_session.flask import SteadfastSessions
except ImportError:
    flask = None

AUTH = {"st": "auth", "sid": "reference", "sub": "alice", "ver": 4}


@unittest.skipUnless(flask, "Flask is not installed")
class FlaskSessions(unittest.TestCase):
    def answer(self, view, claims=None, headers=None, **options):
        """What a view answers to a request with these claims."""
        signer = Signer()
        app = flask.Flask("shop")
        app.session_interface = SteadfastSessions("shop", signer.jwks, **options)
        app.add_url_rule("/", view_func=view, endpoint="view")
        self.sent = signer.headers(claims) if headers is None else headers
        return app.test_client().get("/", headers=self.sent)

    def said(self, act, claims=None, **options):
        def view():
            act(flask.session)
            return "fine"

        response = self.answer(view, claims, **options)
        self.assertEqual(response.status_code, 200)
        return said(response.headers, self.sent)

    def test_a_session_is_its_data(self):
        def act(session):
            self.assertEqual(dict(session), {"cart": [1], "inner": {"a": 1}})
            self.assertEqual((session.subject, session.claims["ver"], session.new), ("alice", 4, False))
            session["inner"]["a"] = 2
            session["visits"] = 1
            del session["cart"]

        claims = {**AUTH, "d": {"cart": [1], "inner": {"a": 1}}}
        self.assertEqual(self.said(act, claims), (None, {"cart": None, "inner": {"a": 2}, "visits": 1}))

    def test_a_session_that_is_only_read_says_nothing(self):
        response = self.answer(lambda: str(flask.session["cart"]), {**AUTH, "d": {"cart": [1]}})
        self.assertEqual(said(response.headers, self.sent), (None, None))
        self.assertEqual((response.headers["Vary"], response.headers.get("Set-Cookie")), ("Cookie", None))
        self.assertNotIn("Vary", self.answer(lambda: "fine").headers)

    def test_what_flask_keeps_comes_back_as_it_was(self):
        kept = {"at": datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc), "pair": (1, 2), "raw": b"\0"}
        _, patch = self.said(lambda session: session.update(kept))

        def act(session):
            self.assertEqual(dict(session), kept)

        self.assertEqual(self.said(act, {**AUTH, "d": patch}), (None, None))

    def test_requests_past_the_proxy_get_no_session(self):
        for touch in [
            lambda: flask.session.get("user"),
            lambda: flask.session.update(user="alice"),
            lambda: "user" in flask.session,
            lambda: len(flask.session),
            lambda: flask.session.login("alice"),
            lambda: flask.session.subject,
        ]:
            for status in [401, 503]:
                response = self.answer(lambda: str(touch()), headers={}, status=status)
                self.assertEqual((response.status_code, response.content_type), (status, "application/problem+json"))
                self.assertEqual(response.json["detail"], "no valid Steadfast-Session: there is none")
        self.assertEqual(self.answer(lambda: "ok", headers={}).text, "ok")

    def test_the_lifecycle_is_said(self):
        d = {"cart": [1], "theme": "dark"}
        for claims, act, left, op in [
            ({}, lambda one: one.login("bob", acr="mfa", carry=["cart"]), d, 'login;sub="bob";acr="mfa";carry="cart"'),
            ({}, lambda one: one.login("bob"), d, 'login;sub="bob"'),
            (AUTH, lambda one: one.login("bob", carry="cart"), d, 'login;sub="bob";carry=""'),
            (AUTH, lambda one: one.step_up(acr="mfa"), d, 'step-up;acr="mfa"'),
            (AUTH, lambda one: one.renew(), d, "renew"),
            (AUTH, lambda one: one.logout(), {}, "logout"),
            (AUTH, lambda one: one.logout_all(), {}, "logout-all"),
            (AUTH, lambda one: one.logout_others(), d, "logout-others"),
            (AUTH, lambda one: one.no_touch(), d, "no-touch"),
        ]:

            def check(session):
                act(session)
                self.assertEqual(dict(session), left)

            with self.subTest(op=op):
                self.assertEqual(self.said(check, {**claims, "d": d}), (f'{op};rid="RID"', None))

    def test_logins_are_seen_from_the_data(self):
        def subject(session):
            return session.get("_user_id")

        login = self.said(lambda session: session.update(_user_id="7"), subject=subject)
        self.assertEqual(login, ('login;sub="7";rid="RID"', {"_user_id": "7"}))
        claims = {**AUTH, "d": {"_user_id": "alice"}}
        self.assertEqual(self.said(lambda session: session.clear(), claims, subject=subject), ('logout;rid="RID"', None))

    def test_what_cannot_be_sent_is_an_error(self):
        def view():
            flask.session["large"] = "x" * 20_000
            return "fine"

        with self.assertLogs("shop", "ERROR"):
            response = self.answer(view)
        self.assertEqual(response.status_code, 500)
        self.assertEqual(said(response.headers, self.sent), (None, None))


if __name__ == "__main__":
    unittest.main()
