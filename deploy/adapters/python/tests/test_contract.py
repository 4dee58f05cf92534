import base64
import http.server
import json
import os
import socketserver
import tempfile
import threading
import time
import unittest

from steadfast_session.attempt import Attempt, diff
from steadfast_session.contract import Gate, Refused, load
from steadfast_session.testing import Signer

AUTH = {"st": "auth", "sid": "reference", "sub": "alice", "ver": 4}


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def serve(test, answer, socket_path=None):
    """A server that answers GETs with `answer(path, headers)`: a status and a value."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, value = answer(self.path, self.headers)
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self):
            return "client"

        def log_message(self, *args):
            pass

    if socket_path:
        server = UnixServer(socket_path, Handler)
        at = f"unix:{socket_path}"
    else:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        at = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    test.addCleanup(server.server_close)
    test.addCleanup(server.shutdown)
    return at


class Verification(unittest.TestCase):
    def refusal(self, gate, headers):
        with self.assertRaises(Refused) as caught:
            gate.open(headers)
        return caught.exception.status, str(caught.exception).replace("no valid Steadfast-Session: ", "")

    def test_what_the_proxy_signed_is_let_through(self):
        signer = Signer()
        headers = signer.headers({**AUTH, "d": {"cart": [1]}})
        attempt = Gate("shop", signer.jwks).open(headers)
        self.assertEqual((attempt.claims["sub"], attempt.version, attempt.before), ("alice", 4, {"cart": [1]}))
        self.assertEqual(attempt.nonce, headers["Steadfast-Session-Request"])

    def test_everything_else_is_refused(self):
        signer = Signer(kid="k")
        gate = Gate("shop", signer.jwks, status=403)
        now = time.time()
        header, payload, signature = signer.token().split(".")
        other = signer.token({"sub": "root"}).split(".")[1]
        for token, reason in [
            (None, "there is none"),
            ("", "there is none"),
            (f"{header}.{payload}", "there is none"),
            (f"{header}.{payload}.{signature}=", "there is none"),
            (f"{header}.{payload}.{signature}\n", "there is none"),
            (f"{signer.token()},{signer.token()}", "there is none"),
            ("a.b.c", "it is no JSON"),
            (f"{header}.{other}.{signature}", "its signature is wrong"),
            (f"{header}.{payload}.AAAAA", "its signature is wrong"),
            (Signer(kid="k").token(), "its signature is wrong"),
            (Signer(kid="stranger").token(), "its key is not the proxy's"),
            (signer.token({}, {"alg": "none"}), "it is of another kind"),
            (signer.token({}, {"alg": "HS256"}), "it is of another kind"),
            (signer.token({}, {"typ": "JWT"}), "it is of another kind"),
            (signer.token({}, {"crit": []}), "it is of another kind"),
            (signer.token({"aud": "other"}), "it is for another audience"),
            (signer.token({"aud": ["shop"]}), "it is for another audience"),
            (signer.token({"exp": now - 31}), "it is not of this minute"),
            (signer.token({"iat": now + 31}), "it is not of this minute"),
        ]:
            with self.subTest(token=token):
                self.assertEqual(self.refusal(gate, {"Steadfast-Session": token}), (403, reason))
        for options in [{"audience": "", "jwks": signer.jwks}, {"audience": "shop", "jwks": ""}]:
            with self.assertRaises(ValueError):
                Gate(**options)

    def test_keys_are_fetched_when_one_is_new_and_once_for_all_that_wait(self):
        monday, tuesday = Signer(), Signer()
        shown, fetched = [monday.jwks], []

        def answer(path, headers):
            fetched.append(path)
            return 200, shown[0]

        gate = Gate("shop", serve(self, answer) + "/.well-known/jwks.json")
        threads = [threading.Thread(target=gate.open, args=(monday.headers(),)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(fetched, ["/.well-known/jwks.json"])
        shown[0] = tuesday.jwks
        self.assertEqual(self.refusal(gate, tuesday.headers())[0], 401, "too soon")
        time.sleep(1.05)
        gate.open(tuesday.headers())
        self.assertEqual(len(fetched), 2)
        self.assertEqual(self.refusal(gate, monday.headers())[0], 401, "a key that is shown no more counts no more")

    def test_without_keys_it_is_the_service_that_is_unavailable(self):
        broken = serve(self, lambda path, headers: (200, {}))
        failing = serve(self, lambda path, headers: (500, {"keys": []}))
        for jwks in ["http://127.0.0.1:1", broken, failing, "unix:/nonexistent/session.sock"]:
            gate = Gate("shop", jwks)
            for _ in range(2):
                refusal = self.refusal(gate, Signer().headers())
                self.assertEqual(refusal, (503, "the proxy's keys cannot be had"))

    def test_data_that_is_too_large_for_the_header_is_fetched(self):
        signer = Signer()
        asked = []

        def answer(path, headers):
            asked.append((path, headers["Authorization"]))
            return 200, signer.jwks if "jwks" in path else {"data": {"cart": [1]}, "meta": {"ver": 8}}

        with tempfile.TemporaryDirectory() as folder:
            for api in [serve(self, answer), serve(self, answer, os.path.join(folder, "s"))]:
                jwks = api if api.startswith("unix:") else f"{api}/.well-known/jwks.json"
                headers = signer.headers({"sid": "s", "ver": 7, "d_ref": True, "api": api})
                attempt = Gate("shop", jwks).open(headers)
                self.assertEqual((attempt.before, attempt.version), ({"cart": [1]}, 8))
                nonce = headers["Steadfast-Session-Request"]
                expected = [("/.well-known/jwks.json", None), ("/v1/session", f"Steadfast {nonce}")]
                self.assertEqual(asked, expected)
                asked.clear()

    def test_data_that_cannot_be_fetched_is_not_taken_for_none(self):
        signer = Signer()
        gate = Gate("shop", signer.jwks)
        gone = serve(self, lambda path, headers: (410, {}))
        for api in [None, gone, "unix:/nonexistent/session.sock"]:
            headers = signer.headers({"sid": "s", "d_ref": True, "api": api})
            self.assertEqual(self.refusal(gate, headers)[0], 503)
        with self.assertRaises(Refused):
            load(Attempt({}, "n"))

    def test_a_refusal_says_why(self):
        body, status, headers = Refused("why", 401).problem()
        expected = {"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "why"}
        self.assertEqual((json.loads(body), status), (expected, 401))
        self.assertEqual(headers["WWW-Authenticate"], "Steadfast")
        self.assertNotIn("WWW-Authenticate", Refused("why", 503).problem()[2])


class Patches(unittest.TestCase):
    def test_a_patch_is_the_difference(self):
        for before, after, patch in [
            ({}, {}, {}),
            ({"a": 1}, {"a": 1}, {}),
            ({"a": 1}, {}, {"a": None}),
            ({"a": 1}, {"a": True}, {"a": True}),
            ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
            ({}, {"a": 1}, {"a": 1}),
            ({}, {"a": None}, {}),
            ({"a": 1}, {"a": None}, {"a": None}),
            ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, {"a": {"y": 3}}),
            ({"a": {"x": 1}}, {"a": {"x": 1, "y": None}}, {}),
            ({"a": {"x": 1}}, {"a": {}}, {"a": {"x": None}}),
            ({"a": 1}, {"a": {}}, {"a": {}}),
            ({"a": {"x": 1}}, {"a": [1]}, {"a": [1]}),
            ({"a": [1, {"x": None}]}, {"a": [1, {"x": None}]}, {}),
            ({"a": [1, 2]}, {"a": [2]}, {"a": [2]}),
        ]:
            with self.subTest(before=before, after=after):
                self.assertEqual(json.dumps(diff(before, after)), json.dumps(patch))


class Directives(unittest.TestCase):
    def said(self, claims, *acts, after=None):
        attempt = Attempt(claims, "RID")
        for act in acts:
            act(attempt)
        headers = dict(attempt.headers(after))
        return headers.get("Steadfast-Session-Op"), headers.get("Steadfast-Session-Patch"), headers.get("Steadfast-Session-If")

    def patch(self, claims, *acts, after):
        nonce, encoded = (self.said(claims, *acts, after=after)[1] or "RID.e30").split(".")
        self.assertEqual(nonce, "RID")
        return json.loads(base64.urlsafe_b64decode(encoded + "=="))

    def test_operations_are_lists_of_structured_fields(self):
        for claims, act, op in [
            ({}, lambda one: None, None),
            ({}, lambda one: one.login("alice"), 'login;sub="alice";rid="RID"'),
            (
                {},
                lambda one: one.login(7, "mfa", ["pwd", "otp"], "cart theme"),
                'login;sub="7";acr="mfa";amr="pwd otp";carry="cart theme";rid="RID"',
            ),
            ({}, lambda one: one.login('a"\\b', carry=[]), 'login;sub="a\\"\\\\b";carry="";rid="RID"'),
            ({}, lambda one: one.login("Zoë\r\n%"), 'login;sub=%"Zo%c3%ab%0d%0a%25";rid="RID"'),
            (AUTH, lambda one: one.step_up("mfa"), 'step-up;acr="mfa";rid="RID"'),
            (AUTH, lambda one: one.renew(), 'renew;rid="RID"'),
            ({}, lambda one: one.renew(), None),
            (AUTH, lambda one: one.logout(), 'logout;rid="RID"'),
            (AUTH, lambda one: one.logout("logout-all"), 'logout-all;rid="RID"'),
            (AUTH, lambda one: one.logout_others(), 'logout-others;rid="RID"'),
            (AUTH, lambda one: one.no_touch(), 'no-touch;rid="RID"'),
        ]:
            with self.subTest(op=op):
                self.assertEqual(self.said(claims, act)[0], op)

    def test_of_turns_that_exclude_each_other_one_is_said(self):
        def login(one):
            one.login("alice", acr="pwd")

        def step_up(one):
            one.step_up("mfa", ["otp"])

        def logout(one):
            one.logout()

        for claims, acts, op in [
            ({}, [login, step_up], 'login;sub="alice";acr="mfa";amr="otp";rid="RID"'),
            ({}, [login, lambda one: one.logout_others()], 'login;sub="alice";acr="pwd";rid="RID", logout-others;rid="RID"'),
            (AUTH, [lambda one: one.renew(), login], 'login;sub="alice";acr="pwd";rid="RID"'),
            (AUTH, [login, lambda one: one.renew()], 'login;sub="alice";acr="pwd";rid="RID"'),
            (AUTH, [login, logout], 'logout;rid="RID"'),
            (AUTH, [logout, lambda one: one.renew()], 'logout;rid="RID"'),
            (AUTH, [logout, login], 'login;sub="alice";acr="pwd";carry="";rid="RID"'),
        ]:
            with self.subTest(op=op):
                self.assertEqual(self.said(claims, *acts)[0], op)

    def test_what_cannot_be_meant_is_an_error_at_once(self):
        for claims, act in [
            ({}, lambda one: one.login(None)),
            ({}, lambda one: one.login("")),
            ({}, lambda one: one.login("a", carry=["two words"])),
            ({}, lambda one: one.step_up("mfa")),
            ({}, lambda one: one.logout_others()),
            (AUTH, lambda one: (one.logout(), one.step_up("mfa"))),
        ]:
            with self.assertRaises(ValueError):
                self.said(claims, act)

    def test_a_patch_goes_by_what_the_proxy_keeps(self):
        claims = {**AUTH, "d": {"cart": [1], "theme": {"dark": True, "size": 2}}}
        after = {"theme": {"dark": True, "size": 3}}
        for carry, patch in [
            (None, {"cart": None, "theme": {"size": 3}}),
            (["theme"], {"theme": {"size": 3}}),
            ([], after),
        ]:
            self.assertEqual(self.patch(claims, lambda one: one.login("alice", carry=carry), after=after), patch)
        self.assertIsNone(self.said(claims, lambda one: one.logout(), after=after)[1])
        d = claims["d"]
        left = self.patch(claims, lambda one: one.login("alice", carry=[]), after=d)
        self.assertEqual(left, {}, "what is left behind is not sent along")
        anew = self.patch(claims, lambda one: one.logout(), lambda one: one.login("alice"), after=d)
        self.assertEqual(anew, d, "what was set anew is")
        others = self.patch(claims, lambda one: one.login("bob", carry="cart theme"), after={**d, "user": 1})
        self.assertEqual(others, {"user": 1})

    def test_a_condition_goes_with_what_it_is_for(self):
        self.assertEqual(self.said(AUTH, lambda one: one.only_if_unchanged(), after={"a": 1})[2], "4")
        self.assertEqual(self.said(AUTH, lambda one: one.only_if_unchanged(), after={}), (None, None, None))

    def test_who_is_logged_in_can_be_told_from_the_data(self):
        for claims, subject, op in [
            ({}, None, None),
            ({}, 7, 'login;sub="7";rid="RID"'),
            (AUTH, "alice", None),
            (AUTH, "bob", 'login;sub="bob";carry="";rid="RID"'),
            (AUTH, None, 'logout;rid="RID"'),
        ]:
            self.assertEqual(self.said(claims, lambda one: one.follow(subject))[0], op)
        said = self.said(AUTH, lambda one: one.logout(), lambda one: one.follow("alice"))
        self.assertEqual(said[0], 'logout;rid="RID"')

    def test_what_cannot_be_sent_is_an_error(self):
        for claims, nonce, after in [({}, "RID", {"a": "x" * 16_384}), ({}, "RID", {"a": float("nan")}), ({}, None, {"a": 1})]:
            with self.assertRaises(ValueError):
                Attempt(claims, nonce).headers(after)
        self.assertEqual(Attempt({}, None).headers({}), [])


if __name__ == "__main__":
    unittest.main()
