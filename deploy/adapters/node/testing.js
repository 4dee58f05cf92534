"use strict";
// Stands in for the proxy in the tests of an application.

const { generateKeyPairSync, randomBytes, sign } = require("node:crypto");

class Signer {
  #pair = generateKeyPairSync("ed25519");

  constructor({ audience = "shop", kid = randomBytes(8).toString("base64url") } = {}) {
    this.audience = audience;
    this.kid = kid;
  }

  /** For the option `jwks`. */
  get jwks() {
    return { keys: [{ ...this.#pair.publicKey.export({ format: "jwk" }), kid: this.kid, use: "sig", alg: "EdDSA" }] };
  }

  /** A token; without claims that of a request without a session. */
  token(claims = {}, header = {}) {
    const now = Math.floor(Date.now() / 1_000);
    const defaults = { iss: "steadfast", aud: this.audience, iat: now, exp: now + 60, st: "none", ver: 0 };
    const head = { alg: "EdDSA", typ: "steadfast-session+jwt", kid: this.kid, ...header };
    const signed = [head, { ...defaults, ...claims }].map((part) => encode(JSON.stringify(part))).join(".");
    return `${signed}.${encode(sign(null, Buffer.from(signed), this.#pair.privateKey))}`;
  }

  /** The headers that the proxy adds to a request. */
  headers(claims) {
    return {
      "steadfast-session": this.token(claims),
      "steadfast-session-request": randomBytes(16).toString("base64url"),
    };
  }
}

function encode(octets) {
  return Buffer.from(octets).toString("base64url");
}

module.exports = { Signer };
