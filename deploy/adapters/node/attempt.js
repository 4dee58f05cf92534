"use strict";
// One request's attempt at a session, and the directives that its response sends to the proxy.

const { isDeepStrictEqual } = require("node:util");

const MOST_PATCH_BYTES = 16 * 1024;

class Attempt {
  #turn;
  /** The data that goes along with a login, by key; undefined: as the proxy decides. */
  #carry;
  #isCleared = false;
  #also = new Set();
  #onlyIf = false;

  constructor(claims, nonce) {
    this.claims = Object.freeze(claims);
    this.nonce = nonce;
    this.loaded(claims.d ?? {}, claims.ver);
  }

  loaded(data, version) {
    this.before = data;
    this.version = version;
  }

  login({ subject, acr, amr, carry }) {
    if (isNobody(subject)) throw new TypeError("a login needs a subject");
    const { sub } = this.claims;
    const isOther = sub !== undefined && sub !== String(subject);
    // The proxy gives no user what another has left.
    this.#rotate("login", { sub: String(subject), acr, amr: words(amr) }, isOther ? [] : carry);
  }

  stepUp({ acr, amr, carry }) {
    this.#needsLogin();
    const rotation = this.#rotates ? this.#turn : { name: "step-up", parameters: {} };
    const { parameters } = rotation;
    this.#rotate(rotation.name, { ...parameters, acr: acr ?? parameters.acr, amr: words(amr) ?? parameters.amr }, carry);
  }

  #rotate(name, parameters, carry) {
    this.#carry = words(carry) ?? this.#carry;
    this.#turn = { name, parameters };
  }

  /** Another cookie for the same session; without a session there is nothing to renew. */
  renew() {
    if (this.claims.sid) this.#turn ??= { name: "renew" };
  }

  /** Empty data under another cookie. */
  regenerate() {
    this.#clear();
    this.renew();
  }

  logout(name = "logout") {
    this.#clear();
    this.#turn = { name };
  }

  #clear() {
    this.#carry = [];
    this.#isCleared = true;
  }

  logoutOthers() {
    this.#needsLogin();
    this.#also.add("logout-others");
  }

  noTouch() {
    this.#also.add("no-touch");
  }

  onlyIfUnchanged() {
    this.#onlyIf = true;
  }

  /** Who the application says the user is, where it did not say so by a login or logout. */
  follow(subject) {
    if (this.#turn && this.#turn.name !== "renew") return;
    if (isNobody(subject)) {
      if (this.claims.sub !== undefined) this.logout();
    } else if (String(subject) !== this.claims.sub) {
      this.login({ subject });
    }
  }

  /** What the response says, for data that is like this now. */
  headers(after) {
    const headers = [];
    const operations = this.#operations();
    const patch = this.#patch(JSON.parse(JSON.stringify(after)));
    if (operations.length > 0) headers.push(["Steadfast-Session-Op", operations.join(", ")]);
    if (patch !== "{}") headers.push(["Steadfast-Session-Patch", `${this.nonce}.${Buffer.from(patch).toString("base64url")}`]);
    if (headers.length === 0) return headers;
    if (!this.nonce) throw new Error("the proxy sent no Steadfast-Session-Request: this session is read only");
    if (this.#onlyIf) headers.push(["Steadfast-Session-If", String(this.version)]);
    return headers;
  }

  #operations() {
    const operations = Array.from(this.#also, (name) => item(name, { rid: this.nonce }));
    if (this.#turn) {
      const { name, parameters } = this.#turn;
      const carry = this.#rotates ? this.#carry : undefined;
      operations.unshift(item(name, { ...parameters, carry, rid: this.nonce }));
    }
    return operations;
  }

  #patch(after) {
    if (this.#ends) return "{}";
    const patch = JSON.stringify(this.#rotates && this.#carry ? this.#patchOfCarried(after) : diff(this.before, after));
    if (Buffer.byteLength(patch) > MOST_PATCH_BYTES) throw new RangeError("the session changes by more than 16 KiB");
    return patch;
  }

  #patchOfCarried(after) {
    const carried = select(this.before, (key) => this.#carry.includes(key));
    const isLeft = (key, value) => Object.hasOwn(this.before, key) && isDeepStrictEqual(this.before[key], value);
    const isNew = (key, value) => this.#isCleared || Object.hasOwn(carried, key) || !isLeft(key, value);
    return diff(carried, select(after, isNew));
  }

  get #rotates() {
    return this.#turn?.name === "login" || this.#turn?.name === "step-up";
  }

  get #ends() {
    return this.#turn?.name.startsWith("logout");
  }

  #needsLogin() {
    const isLoggedIn = this.#turn?.name === "login" || (this.claims.st === "auth" && !this.#ends);
    if (!isLoggedIn) throw new Error("nobody is logged in");
  }
}

function isNobody(subject) {
  return subject === undefined || subject === null || subject === "";
}

/** The merge patch (RFC 7396) between two objects. A null in an object is the same as no member, as patches cannot say it. */
function diff(before, after) {
  const patch = Object.create(null);
  for (const key of Object.keys(before)) {
    if (!Object.hasOwn(after, key)) patch[key] = null;
  }
  for (const [key, value] of Object.entries(after)) {
    const old = Object.hasOwn(before, key) ? before[key] : null;
    if (isObject(old) && isObject(value)) {
      const inner = diff(old, value);
      if (Object.keys(inner).length > 0) patch[key] = inner;
    } else if (!isDeepStrictEqual(old, value)) {
      patch[key] = value;
    }
  }
  return patch;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function select(object, isWanted) {
  return Object.fromEntries(Object.entries(object).filter(([key, value]) => isWanted(key, value)));
}

function words(list) {
  if (list === undefined) return undefined;
  const words = typeof list === "string" ? list.split(" ").filter(Boolean) : Array.from(list, String);
  if (words.some((word) => !/^\S+$/.test(word))) throw new TypeError("names in `carry` and `amr` have no spaces");
  return words;
}

/** An item of a list of RFC 9651. */
function item(name, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
  return [name, ...given.map(([key, value]) => `${key}=${quoted(value)}`)].join(";");
}

/** A String of RFC 9651, or a Display String where one cannot say it. */
function quoted(value) {
  const text = Array.isArray(value) ? value.join(" ") : String(value);
  if (/^[ -~]*$/.test(text)) return `"${text.replace(/["\\]/g, "\\$&")}"`;
  return `%"${encodeURIComponent(text).replace(/%../g, (octet) => octet.toLowerCase())}"`;
}

module.exports = { Attempt, diff };
