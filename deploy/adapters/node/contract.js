"use strict";
// What a request through the proxy brings: a session signed by one of the proxy's keys.

const { createPublicKey, verify: verifySignature } = require("node:crypto");
const http = require("node:http");
const https = require("node:https");
const { Attempt } = require("./attempt.js");

const JWKS_PATH = "/.well-known/jwks.json";
const ANSWER_WITHIN_MS = 1_000;
const FETCH_EVERY_MS = 1_000;
const SKEW_SECONDS = 30;
const TOKEN = /^([\w-]+)\.([\w-]+)\.([\w-]+)$/;
const NONCE = /^[\w-]{1,64}$/;

/** A request that is not served, with the status that says so. */
class Refused extends Error {
  constructor(message, status, options) {
    super(message, options);
    this.status = status;
  }
}

/** The proxy's public keys by `kid`: a key set, or where to fetch it (a URL, or `unix:` and the path of a socket). */
class Keys {
  #source;
  #known = new Map();
  #fetchedAt = -Infinity;
  #latest;

  constructor(source) {
    if (typeof source === "string") this.#source = source;
    else this.#known = keysOf(source);
  }

  async find(kid) {
    if (!this.#known.has(kid) && this.#source) await this.#refetch();
    return this.#known.get(kid);
  }

  // Whoever asks again too soon shares the last answer: unknown keys cost one request a second, however many there are.
  #refetch() {
    if (performance.now() - this.#fetchedAt >= FETCH_EVERY_MS) {
      this.#fetchedAt = performance.now();
      this.#latest = this.#fetch();
    }
    return this.#latest;
  }

  async #fetch() {
    try {
      const path = this.#source.startsWith("unix:") ? JWKS_PATH : "";
      this.#known = keysOf(await getJson(this.#source, path));
    } catch (error) {
      throw new Refused("the proxy's keys cannot be had", 503, { cause: error });
    }
  }
}

function keysOf({ keys }) {
  const ours = keys.filter(({ kty, crv }) => kty === "OKP" && crv === "Ed25519");
  return new Map(ours.map((jwk) => [jwk.kid, createPublicKey({ key: jwk, format: "jwk" })]));
}

/** Lets through what the proxy has signed for this audience. */
class Gate {
  #audience;
  #keys;
  #status;

  constructor({ audience, jwks, status = 401 }) {
    if (!audience || !jwks) throw new TypeError("`audience` (the name of the pool) and `jwks` are needed");
    this.#audience = audience;
    this.#keys = new Keys(jwks);
    this.#status = status;
  }

  /** The attempt that a request with these headers is. */
  async open(headers) {
    const claims = await this.#verify(headers["steadfast-session"]);
    const nonce = headers["steadfast-session-request"];
    const attempt = new Attempt(claims, NONCE.test(nonce ?? "") ? nonce : undefined);
    if (claims.d_ref) await load(attempt);
    return attempt;
  }

  async #verify(token) {
    const [, header, payload, signature] = TOKEN.exec(token ?? "") ?? this.#refuse("there is none");
    const { alg, typ, kid, crit } = this.#parse(header);
    if (alg !== "EdDSA" || typ !== "steadfast-session+jwt" || crit !== undefined) this.#refuse("it is of another kind");
    const key = (await this.#keys.find(kid)) ?? this.#refuse("its key is not the proxy's");
    const signed = Buffer.from(`${header}.${payload}`);
    if (!verifySignature(null, signed, key, Buffer.from(signature, "base64url"))) this.#refuse("its signature is wrong");
    const claims = this.#parse(payload);
    const now = Date.now() / 1_000;
    if (claims.aud !== this.#audience) this.#refuse("it is for another audience");
    if (!(now < claims.exp + SKEW_SECONDS && claims.iat - SKEW_SECONDS <= now)) this.#refuse("it is not of this minute");
    return claims;
  }

  #parse(part) {
    try {
      return Object(JSON.parse(Buffer.from(part, "base64url").toString()));
    } catch {
      this.#refuse("it is no JSON");
    }
  }

  #refuse(reason) {
    throw new Refused(`no valid Steadfast-Session: ${reason}`, this.#status);
  }
}

/** Reads the session's data as it is now. */
async function load(attempt) {
  const { api } = attempt.claims;
  if (!api || !attempt.nonce) throw new Refused("the session's data is out of reach: no side API", 503);
  try {
    const answer = await getJson(api, "/v1/session", { Authorization: `Steadfast ${attempt.nonce}` });
    attempt.loaded(answer.data, answer.meta?.ver);
  } catch (error) {
    throw new Refused("the session's data cannot be had", 503, { cause: error });
  }
}

function getJson(base, path, headers = {}) {
  const socketPath = base.startsWith("unix:") ? base.slice("unix:".length) : undefined;
  const url = new URL(path, socketPath ? "http://localhost" : base);
  const options = { headers, socketPath, signal: AbortSignal.timeout(ANSWER_WITHIN_MS) };
  return new Promise((resolve, reject) => {
    const request = (url.protocol === "https:" ? https : http).get(url, options, (response) => {
      jsonOf(response).then(resolve, reject);
    });
    request.on("error", reject);
  });
}

async function jsonOf(response) {
  const pieces = [];
  for await (const piece of response) pieces.push(piece);
  if (response.statusCode !== 200) throw new Error(`the answer was ${response.statusCode}`);
  return JSON.parse(Buffer.concat(pieces).toString());
}

module.exports = { Gate, Refused, load };
