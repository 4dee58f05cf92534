"use strict";
const assert = require("node:assert/strict");
const { once } = require("node:events");
const http = require("node:http");
const { afterEach, mock, test } = require("node:test");

const session = require("../index.js");
const { Signer } = require("../testing.js");

const signer = new Signer();
const servers = [];

afterEach(() => {
  mock.restoreAll();
  servers.splice(0).forEach(stop);
});

function stop(server) {
  server.close();
  server.closeAllConnections();
}

async function serve(handler) {
  const server = http.createServer(handler).listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  return `http://127.0.0.1:${server.address().port}`;
}

/** What a handler behind the middleware answers to a request with these claims, and what it says to the proxy. */
async function answer(handler, claims = {}, { headers = signer.headers(claims), ...options } = {}) {
  const middleware = session({ audience: "shop", jwks: signer.jwks, ...options });
  const at = await serve((request, response) => {
    middleware(request, response, (error) => (error ? response.writeHead(500).end(String(error)) : handler(request, response)));
  });
  const response = await fetch(at, { headers });
  const nonce = headers["steadfast-session-request"];
  const patch = response.headers.get("steadfast-session-patch");
  return {
    response,
    body: await response.text(),
    op: response.headers.get("steadfast-session-op")?.replaceAll(nonce, "RID"),
    patch: patch?.startsWith(`${nonce}.`) ? Buffer.from(patch.split(".")[1], "base64url").toString() : patch,
    onlyIf: response.headers.get("steadfast-session-if"),
  };
}

const AUTH = { st: "auth", sid: "reference", sub: "alice", ver: 4 };

test("a session is its data", async () => {
  const until = Math.floor(Date.now() / 1_000) + 60;
  const claims = { ...AUTH, idle_exp: until, d: { cart: [1], inner: { a: 1 } } };
  const { body, op, patch } = await answer((request, response) => {
    const { session } = request;
    assert.deepEqual({ ...session }, claims.d);
    assert.equal(request.sessionID, "reference");
    assert.equal(session.id, "reference");
    assert.equal(session.cookie.expires.getTime(), until * 1_000);
    assert.equal(request.steadfast.sub, "alice");
    session.inner.a = 2;
    session.visits = 1;
    delete session.cart;
    response.end("fine");
  }, claims);
  assert.deepEqual([body, op, patch], ["fine", undefined, '{"cart":null,"inner":{"a":2},"visits":1}']);
});

test("a session that is only read says nothing", async () => {
  const { patch, op, onlyIf } = await answer(({ session }, response) => response.end(String(session.cart)), { d: { cart: [1] } });
  assert.deepEqual([patch, op, onlyIf], [null, undefined, null]);
});

test("data of any name is data", async () => {
  const d = JSON.parse('{"__proto__":{"admin":true},"cookie":1,"id":2,"constructor":3}');
  const { body, patch } = await answer(({ session }, response) => {
    assert.equal(session.admin, undefined);
    session.id = 5;
    response.end(JSON.stringify(session));
  }, { d });
  assert.equal(body, '{"__proto__":{"admin":true},"cookie":1,"id":5,"constructor":3}');
  assert.equal(patch, '{"id":5}');
});

test("the data is sent with the head, however the head is sent", async () => {
  for (const send of [
    (response) => response.end(),
    (response) => response.writeHead(201, { "X-Own": "1" }).end(),
    (response) => response.writeHead(201, ["X-Own", "1"]).end(),
    (response) => (response.flushHeaders(), response.end()),
    (response) => (response.write("a"), response.end("b")),
  ]) {
    const { patch } = await answer(({ session }, response) => {
      session.a = 1;
      send(response);
      session.a = 2;
    });
    assert.equal(patch, '{"a":1}');
  }
});

test("requests past the proxy are refused", async () => {
  const never = () => assert.fail("it was let through");
  for (const status of [401, 503]) {
    const { response, body } = await answer(never, {}, { headers: {}, status });
    assert.equal(response.status, status);
    assert.equal(response.headers.get("content-type"), "application/problem+json");
    assert.equal(response.headers.get("www-authenticate"), status === 401 ? "Steadfast" : null);
    assert.deepEqual([JSON.parse(body).status, JSON.parse(body).detail], [status, "no valid Steadfast-Session: there is none"]);
  }
  const { response } = await answer(never, { aud: "other" });
  assert.equal(response.status, 401);
});

test("the lifecycle is said", async () => {
  const d = { cart: [1], theme: "dark", secret: 1 };
  for (const [claims, act, left, op, patch] of [
    [{}, (one) => one.login({ subject: "bob", carry: ["cart"] }), d, 'login;sub="bob";carry="cart";rid="RID"', null],
    [{}, (one) => one.login({ subject: "bob" }), d, 'login;sub="bob";rid="RID"', null],
    [AUTH, (one) => one.login({ subject: "bob", carry: ["cart"] }), d, 'login;sub="bob";carry="";rid="RID"', null],
    [AUTH, (one) => one.stepUp({ acr: "mfa" }), d, 'step-up;acr="mfa";rid="RID"', null],
    [AUTH, (one) => one.renew(), d, 'renew;rid="RID"', null],
    [AUTH, (one) => one.logout(), {}, 'logout;rid="RID"', null],
    [AUTH, (one) => one.logoutAll(), {}, 'logout-all;rid="RID"', null],
    [AUTH, (one) => one.logoutOthers().noTouch(), d, 'logout-others;rid="RID", no-touch;rid="RID"', null],
    [AUTH, (one) => one.touch().resetMaxAge(), d, undefined, null],
  ]) {
    const said = await answer(({ session }, response) => {
      act(session);
      assert.deepEqual({ ...session }, left);
      response.end();
    }, { ...claims, d });
    assert.deepEqual([said.op, said.patch], [op, patch], op);
  }
});

test("a condition is the version that was read", async () => {
  const { onlyIf } = await answer(({ session }, response) => {
    session.onlyIfUnchanged().stock = 1;
    response.end();
  }, AUTH);
  assert.equal(onlyIf, "4");
});

test("callbacks come as from express-session", async () => {
  const d = { cart: [1] };
  const called = (act) => answer((request, response) => act(request, (error) => response.end(String(error))), { ...AUTH, d });
  const destroyed = await called((request, done) => request.session.destroy((error) => done(error ?? request.session)));
  assert.deepEqual([destroyed.body, destroyed.op, destroyed.patch], ["undefined", 'logout;rid="RID"', null]);
  const regenerated = await called((request, done) => {
    request.session.regenerate(() => {
      request.session.user = 1;
      request.session.save(done);
    });
  });
  assert.deepEqual([regenerated.op, regenerated.patch], ['renew;rid="RID"', '{"cart":null,"user":1}']);
  const unsaved = await called(({ session }, done) => {
    session.large = "x".repeat(20_000);
    session.save((error) => {
      delete session.large;
      done(error);
    });
  });
  assert.match(unsaved.body, /RangeError/);
});

test("logins are seen from the data", async () => {
  const subject = ({ user }) => user;
  const login = await answer((request, response) => {
    request.session.regenerate(() => {
      request.session.user = 7;
      response.end();
    });
  }, { d: { cart: [1] } }, { subject });
  assert.deepEqual([login.op, login.patch], ['login;sub="7";carry="";rid="RID"', '{"user":7}']);
  const logout = await answer(({ session }, response) => {
    delete session.user;
    response.end();
  }, { ...AUTH, d: { user: "alice" } }, { subject });
  assert.deepEqual([logout.op, logout.patch], ['logout;rid="RID"', null]);
});

test("a reload reads what others have written", async () => {
  let ver = 5;
  const api = await serve((request, response) => response.end(JSON.stringify({ data: { stock: ver }, meta: { ver } })));
  const { patch, onlyIf } = await answer(({ session }, response) => {
    session.mine = 1;
    session.reload(() => {
      assert.deepEqual({ ...session }, { stock: 5 });
      session.onlyIfUnchanged().stock -= 1;
      response.end();
    });
  }, { ...AUTH, d: { stock: 9 }, api });
  assert.deepEqual([patch, onlyIf], ['{"stock":4}', "5"]);
  const { body } = await answer(({ session }, response) => session.reload((error) => response.end(String(error))), AUTH);
  assert.match(body, /out of reach/);
});

test("a session that was taken off the request is left as it was", async () => {
  const { op, patch } = await answer((request, response) => {
    request.session.a = 1;
    request.session = null;
    response.end();
  }, AUTH, { subject: ({ user }) => user });
  assert.deepEqual([op, patch], [undefined, null]);
});

test("what cannot be sent makes the proxy answer with an error", async () => {
  const logged = mock.method(console, "error", () => {});
  for (const value of ["x".repeat(20_000), 1n]) {
    const { patch } = await answer(({ session }, response) => {
      session.value = value;
      response.end();
    });
    assert.equal(patch, "");
  }
  assert.equal(logged.mock.callCount(), 2);
});

test("mounted twice it is one", async () => {
  const inner = session({ audience: "shop", jwks: signer.jwks });
  const { patch } = await answer((request, response) => {
    request.session.a = 1;
    inner(request, response, () => response.end());
  });
  assert.equal(patch, '{"a":1}');
});
