"use strict";
const assert = require("node:assert/strict");
const { once } = require("node:events");
const http = require("node:http");
const { tmpdir } = require("node:os");
const path = require("node:path");
const { afterEach, test } = require("node:test");

const { Attempt, diff } = require("../attempt.js");
const { Gate, Refused, load } = require("../contract.js");
const { Signer } = require("../testing.js");

const servers = [];

afterEach(() => servers.splice(0).forEach(stop));

function stop(server) {
  server.close();
  server.closeAllConnections();
}

async function serve(handler, at = { port: 0, host: "127.0.0.1" }) {
  const server = http.createServer(handler).listen(at);
  servers.push(server);
  await once(server, "listening");
  return at.path ? `unix:${at.path}` : `http://127.0.0.1:${server.address().port}`;
}

const json = (body) => (request, response) => response.end(JSON.stringify(body));

async function refusal(gate, headers) {
  try {
    await gate.open(headers);
  } catch (error) {
    assert(error instanceof Refused, error);
    return [error.status, error.message.replace("no valid Steadfast-Session: ", "")];
  }
  assert.fail("it was let through");
}

test("what the proxy signed is let through", async () => {
  const signer = new Signer();
  const gate = new Gate({ audience: "shop", jwks: signer.jwks });
  const headers = signer.headers({ st: "auth", sid: "s", ver: 3, sub: "alice", d: { cart: [1] } });
  const attempt = await gate.open(headers);
  assert.deepEqual([attempt.claims.sub, attempt.version, attempt.before], ["alice", 3, { cart: [1] }]);
  assert.equal(attempt.nonce, headers["steadfast-session-request"]);
});

test("everything else is refused", async () => {
  const signer = new Signer({ kid: "k" });
  const gate = new Gate({ audience: "shop", jwks: signer.jwks, status: 403 });
  const now = Date.now() / 1_000;
  const [header, payload, signature] = signer.token().split(".");
  const [, other] = signer.token({ sub: "root" }).split(".");
  for (const [token, reason] of [
    [undefined, "there is none"],
    ["", "there is none"],
    [`${header}.${payload}`, "there is none"],
    [`${header}.${payload}.${signature}=`, "there is none"],
    [`${signer.token()}, ${signer.token()}`, "there is none"],
    ["a.b.c", "it is no JSON"],
    [`${header}.${other}.${signature}`, "its signature is wrong"],
    [new Signer({ kid: "k" }).token(), "its signature is wrong"],
    [new Signer({ kid: "stranger" }).token(), "its key is not the proxy's"],
    [signer.token({}, { alg: "none" }), "it is of another kind"],
    [signer.token({}, { alg: "HS256" }), "it is of another kind"],
    [signer.token({}, { typ: "JWT" }), "it is of another kind"],
    [signer.token({}, { crit: [] }), "it is of another kind"],
    [signer.token({ aud: "other" }), "it is for another audience"],
    [signer.token({ aud: ["shop"] }), "it is for another audience"],
    [signer.token({ exp: now - 31 }), "it is not of this minute"],
    [signer.token({ exp: undefined }), "it is not of this minute"],
    [signer.token({ iat: now + 31 }), "it is not of this minute"],
  ]) {
    assert.deepEqual(await refusal(gate, { "steadfast-session": token }), [403, reason], String(token));
  }
  assert.throws(() => new Gate({ audience: "shop" }), TypeError);
  assert.throws(() => new Gate({ jwks: signer.jwks }), TypeError);
});

test("keys are fetched when one is new, and once for all that wait", async () => {
  const [monday, tuesday] = [new Signer(), new Signer()];
  let keys = monday.jwks;
  let fetched = 0;
  const jwks = await serve((request, response) => {
    fetched += 1;
    response.end(JSON.stringify(keys));
  });
  const gate = new Gate({ audience: "shop", jwks });
  await Promise.all(Array.from({ length: 5 }, () => gate.open(monday.headers())));
  assert.equal(fetched, 1);
  keys = tuesday.jwks;
  assert.equal((await refusal(gate, tuesday.headers()))[0], 401, "too soon");
  await new Promise((resolve) => setTimeout(resolve, 1_050));
  await gate.open(tuesday.headers());
  assert.equal(fetched, 2);
  assert.equal((await refusal(gate, monday.headers()))[0], 401, "a key that is shown no more counts no more");
});

test("without keys it is the service that is unavailable", async () => {
  const signer = new Signer();
  const silent = await serve(() => {});
  const halting = await serve((request, response) => response.write("{"));
  const broken = await serve(json({}));
  const failing = await serve((request, response) => response.writeHead(500).end("{}"));
  const ask = async (jwks) => {
    const gate = new Gate({ audience: "shop", jwks });
    for (let again = 0; again < 2; again += 1) {
      assert.deepEqual(await refusal(gate, signer.headers()), [503, "the proxy's keys cannot be had"]);
    }
  };
  await Promise.all(["http://127.0.0.1:1", silent, halting, broken, failing].map(ask));
});

test("data that is too large for the header is fetched, over a Unix socket too", async () => {
  const signer = new Signer();
  const socket = path.join(tmpdir(), `steadfast-session-${process.pid}.sock`);
  const asked = [];
  const api = (request, response) => {
    asked.push([request.url, request.headers.authorization]);
    response.end(JSON.stringify(request.url === "/v1/session" ? { data: { cart: [1] }, meta: { ver: 8 } } : signer.jwks));
  };
  for (const at of [await serve(api), await serve(api, { path: socket })]) {
    const jwks = at.startsWith("unix:") ? at : `${at}/.well-known/jwks.json`;
    const headers = signer.headers({ sid: "s", ver: 7, d_ref: true, api: at });
    const attempt = await new Gate({ audience: "shop", jwks }).open(headers);
    assert.deepEqual([attempt.before, attempt.version], [{ cart: [1] }, 8]);
    const credential = `Steadfast ${headers["steadfast-session-request"]}`;
    assert.deepEqual(asked.splice(0), [["/.well-known/jwks.json", undefined], ["/v1/session", credential]]);
  }
});

test("data that cannot be fetched is not taken for none", async () => {
  const signer = new Signer();
  const gate = new Gate({ audience: "shop", jwks: signer.jwks });
  const gone = await serve((request, response) => response.writeHead(410).end());
  for (const api of [undefined, gone, "unix:/nonexistent/session.sock"]) {
    assert.equal((await refusal(gate, signer.headers({ sid: "s", d_ref: true, api })))[0], 503);
  }
  await assert.rejects(load(new Attempt({}, "n")), Refused);
});

test("a patch is the difference", () => {
  for (const [before, after, patch] of [
    [{}, {}, {}],
    [{ a: 1 }, { a: 1 }, {}],
    [{ a: 1 }, {}, { a: null }],
    [{ a: 1 }, { a: true }, { a: true }],
    [{}, { a: 1 }, { a: 1 }],
    [{}, { a: null }, {}],
    [{ a: 1 }, { a: null }, { a: null }],
    [{ a: { x: 1, y: 2 } }, { a: { x: 1, y: 3 } }, { a: { y: 3 } }],
    [{ a: { x: 1 } }, { a: { x: 1, y: null } }, {}],
    [{ a: { x: 1 } }, { a: {} }, { a: { x: null } }],
    [{ a: 1 }, { a: {} }, { a: {} }],
    [{ a: { x: 1 } }, { a: [1] }, { a: [1] }],
    [{ a: [1, { x: null }] }, { a: [1, { x: null }] }, {}],
    [{ a: [1, 2] }, { a: [2] }, { a: [2] }],
    [JSON.parse('{"__proto__":{"x":1}}'), {}, JSON.parse('{"__proto__":null}')],
    [{}, JSON.parse('{"__proto__":{"x":1}}'), JSON.parse('{"__proto__":{"x":1}}')],
  ]) {
    assert.equal(JSON.stringify(diff(before, after)), JSON.stringify(patch));
  }
});

const AUTH = { st: "auth", sid: "s", sub: "alice", ver: 4 };

/** What is said after `act`, for data that is `after` then. */
function said(claims, act, after = claims.d ?? {}) {
  const attempt = new Attempt({ ...claims }, "RID");
  act(attempt);
  const { "Steadfast-Session-Op": op, "Steadfast-Session-Patch": patch, "Steadfast-Session-If": onlyIf } =
    Object.fromEntries(attempt.headers(after));
  const [nonce, encoded] = patch?.split(".") ?? ["RID"];
  assert.equal(nonce, "RID");
  return { op, patch: encoded && JSON.parse(Buffer.from(encoded, "base64url")), onlyIf };
}

test("operations are lists of structured fields", () => {
  for (const [claims, act, op] of [
    [{}, () => {}, undefined],
    [{}, (one) => one.login({ subject: "alice" }), 'login;sub="alice";rid="RID"'],
    [
      {},
      (one) => one.login({ subject: 7, acr: "mfa", amr: ["pwd", "otp"], carry: ["cart", "theme"] }),
      'login;sub="7";acr="mfa";amr="pwd otp";carry="cart theme";rid="RID"',
    ],
    [{}, (one) => one.login({ subject: 'a"\\b', carry: "" }), 'login;sub="a\\"\\\\b";carry="";rid="RID"'],
    [{}, (one) => one.login({ subject: "Zoë\r\n%" }), 'login;sub=%"Zo%c3%ab%0d%0a%25";rid="RID"'],
    [AUTH, (one) => one.stepUp({ acr: "mfa" }), 'step-up;acr="mfa";rid="RID"'],
    [AUTH, (one) => one.renew(), 'renew;rid="RID"'],
    [{}, (one) => one.renew(), undefined],
    [AUTH, (one) => one.logout(), 'logout;rid="RID"'],
    [AUTH, (one) => one.logout("logout-all"), 'logout-all;rid="RID"'],
    [AUTH, (one) => one.logoutOthers(), 'logout-others;rid="RID"'],
    [AUTH, (one) => (one.noTouch(), one.logoutOthers()), 'no-touch;rid="RID", logout-others;rid="RID"'],
  ]) {
    assert.equal(said(claims, act).op, op);
  }
});

test("of turns that exclude each other one is said", () => {
  const login = (one) => one.login({ subject: "alice", acr: "pwd" });
  const stepUp = (one) => one.stepUp({ acr: "mfa", amr: ["otp"] });
  for (const [claims, acts, op] of [
    [{}, [login, stepUp], 'login;sub="alice";acr="mfa";amr="otp";rid="RID"'],
    [{}, [login, (one) => one.logoutOthers()], 'login;sub="alice";acr="pwd";rid="RID", logout-others;rid="RID"'],
    [AUTH, [(one) => one.regenerate(), login], 'login;sub="alice";acr="pwd";carry="";rid="RID"'],
    [AUTH, [login, (one) => one.regenerate()], 'login;sub="alice";acr="pwd";carry="";rid="RID"'],
    [AUTH, [login, (one) => one.logout()], 'logout;rid="RID"'],
    [AUTH, [(one) => one.logout(), (one) => one.renew()], 'logout;rid="RID"'],
    [AUTH, [(one) => one.logout(), login], 'login;sub="alice";acr="pwd";carry="";rid="RID"'],
  ]) {
    assert.equal(said(claims, (one) => acts.forEach((act) => act(one))).op, op);
  }
});

test("what cannot be meant is an error at once", () => {
  for (const [claims, act] of [
    [{}, (one) => one.login({})],
    [{}, (one) => one.login({ subject: "" })],
    [{}, (one) => one.login({ subject: "a", carry: ["two words"] })],
    [{}, (one) => one.stepUp({ acr: "mfa" })],
    [{}, (one) => one.logoutOthers()],
    [AUTH, (one) => (one.logout(), one.stepUp({ acr: "mfa" }))],
  ]) {
    assert.throws(() => said(claims, act));
  }
});

test("a patch goes by what the proxy keeps", () => {
  const d = { cart: [1], theme: { dark: true, size: 2 } };
  const after = { theme: { dark: true, size: 3 } };
  const login = (carry) => (one) => one.login({ subject: "alice", carry });
  assert.deepEqual(said({ d }, login(undefined), after).patch, { cart: null, theme: { size: 3 } });
  assert.deepEqual(said({ d }, login(["theme"]), after).patch, { theme: { size: 3 } });
  assert.deepEqual(said({ d }, login([]), after).patch, after);
  assert.equal(said({ d }, login([]), d).patch, undefined, "what is left behind is not sent along");
  assert.deepEqual(said({ d }, (one) => (one.regenerate(), login(undefined)(one)), d).patch, d, "what was set anew is");
  assert.deepEqual(said({ ...AUTH, sub: "bob", d }, login(["cart", "theme"]), { ...d, user: 1 }).patch, { user: 1 });
  assert.deepEqual(said({ ...AUTH, d }, (one) => one.regenerate(), after).patch, { cart: null, theme: { size: 3 } });
  assert.equal(said({ ...AUTH, d }, (one) => one.logout(), after).patch, undefined);
});

test("a condition goes with what it is for", () => {
  assert.equal(said(AUTH, (one) => one.onlyIfUnchanged(), { a: 1 }).onlyIf, "4");
  assert.equal(said(AUTH, (one) => one.onlyIfUnchanged()).onlyIf, undefined);
});

test("who is logged in can be told from the data", () => {
  for (const [claims, subject, op] of [
    [{}, undefined, undefined],
    [{}, 7, 'login;sub="7";rid="RID"'],
    [AUTH, "alice", undefined],
    [AUTH, "bob", 'login;sub="bob";carry="";rid="RID"'],
    [AUTH, null, 'logout;rid="RID"'],
  ]) {
    assert.equal(said(claims, (one) => one.follow(subject)).op, op);
  }
  assert.equal(said(AUTH, (one) => (one.logout(), one.follow("alice"))).op, 'logout;rid="RID"');
});

test("what cannot be sent is an error", () => {
  const large = { a: "x".repeat(16 * 1024) };
  assert.throws(() => said({}, () => {}, large), RangeError);
  assert.throws(() => new Attempt({}, undefined).headers({ a: 1 }), /read only/);
  assert.deepEqual(new Attempt({}, undefined).headers({}), []);
});
