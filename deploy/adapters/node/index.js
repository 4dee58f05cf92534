"use strict";
// `req.session` with the API of express-session, for sessions that the proxy keeps.

const { STATUS_CODES } = require("node:http");
const { Gate, Refused, load } = require("./contract.js");

/**
 * Middleware in the place of `express-session`.
 *
 * - `audience`: the name of the pool.
 * - `jwks`: the proxy's keys, `{ keys: [...] }` or where they are: a URL, or `unix:` and the path of a socket.
 * - `status`: what requests get that did not come through the proxy; 401.
 * - `subject`: `(session) => user id or undefined`, where logins are to be seen from the data instead of being said.
 */
function session({ audience, jwks, status, subject }) {
  const gate = new Gate({ audience, jwks, status });
  return async function steadfastSession(request, response, next) {
    if (request.steadfast) return next();
    try {
      attach(request, response, await gate.open(request.headers), subject);
    } catch (error) {
      return error instanceof Refused ? refuse(response, error) : next(error);
    }
    next();
  };
}

function attach(request, response, attempt, subject) {
  request.steadfast = attempt.claims;
  request.session = new Session(attempt, request);
  request.sessionID = request.session.id;
  const { writeHead } = response;
  let said = false;
  response.writeHead = function (...head) {
    if (!said) {
      said = true;
      say(request, response, attempt, subject);
    }
    return writeHead.apply(this, head);
  };
}

function say({ session }, response, attempt, subject) {
  try {
    if (session && subject) attempt.follow(subject(session));
    for (const [name, value] of attempt.headers(session ?? attempt.before)) response.setHeader(name, value);
  } catch (error) {
    // The head is on its way and nobody is left to catch. A patch that is none makes the proxy answer 502 instead.
    console.error(error);
    if (attempt.nonce) response.setHeader("Steadfast-Session-Patch", `${attempt.nonce}.`);
  }
}

function refuse(response, { status, message }) {
  const headers = { "Content-Type": "application/problem+json", "Cache-Control": "no-store" };
  if (status === 401) headers["WWW-Authenticate"] = "Steadfast";
  const problem = { type: "about:blank", title: STATUS_CODES[status], status, detail: message };
  response.writeHead(status, headers).end(JSON.stringify(problem));
}

/** The data as properties. What changes is sent with the head of the response, which the client gets once it is stored. */
class Session {
  #attempt;
  #request;

  constructor(attempt, request, data = attempt.before) {
    this.#attempt = attempt;
    this.#request = request;
    this.#fill(data);
  }

  /** Names the session and is no secret; undefined where there is none yet. */
  get id() {
    return this.#attempt.claims.sid;
  }

  /** The cookie is the proxy's: this only tells about it. */
  get cookie() {
    const { idle_exp: until } = this.#attempt.claims;
    const expires = until === undefined ? null : new Date(until * 1_000);
    const maxAge = expires && Math.max(0, expires.getTime() - Date.now());
    return { path: "/", httpOnly: true, secure: true, sameSite: "lax", expires, maxAge, originalMaxAge: maxAge };
  }

  /**
   * Somebody has shown who they are: a new session under a new cookie. Of the old one's data it has the keys named in
   * `carry`, and what this request changes.
   */
  login({ subject, acr, amr, carry }) {
    this.#attempt.login({ subject, acr, amr, carry });
    return this;
  }

  /** The same user has shown more. */
  stepUp({ acr, amr, carry } = {}) {
    this.#attempt.stepUp({ acr, amr, carry });
    return this;
  }

  renew() {
    this.#attempt.renew();
    return this;
  }

  logout() {
    this.#attempt.logout();
    return this.#clear();
  }

  /** Ends all sessions of the user. */
  logoutAll() {
    this.#attempt.logout("logout-all");
    return this.#clear();
  }

  /** Ends all sessions of the user but this one. */
  logoutOthers() {
    this.#attempt.logoutOthers();
    return this;
  }

  /** This request does not count as use. */
  noTouch() {
    this.#attempt.noTouch();
    return this;
  }

  /** The client gets 409, and nothing is written, if another request has changed the data meanwhile. */
  onlyIfUnchanged() {
    this.#attempt.onlyIfUnchanged();
    return this;
  }

  /** An empty session in the place of this one, which itself is left as it is. */
  regenerate(callback) {
    this.#attempt.regenerate();
    this.#request.session = new Session(this.#attempt, this.#request, {});
    return this.#call(callback);
  }

  destroy(callback) {
    this.logout();
    delete this.#request.session;
    return this.#call(callback);
  }

  /** Says early whether the data can be sent; it is stored with the response, and before the client has it. */
  save(callback) {
    try {
      this.#attempt.headers(this);
    } catch (error) {
      return this.#call(callback, error);
    }
    return this.#call(callback);
  }

  reload(callback) {
    const refill = () => this.#clear().#fill(this.#attempt.before);
    load(this.#attempt).then(refill).then(() => this.#call(callback), (error) => this.#call(callback, error));
    return this;
  }

  /** Every request counts as use. */
  touch() {
    return this;
  }

  resetMaxAge() {
    return this;
  }

  #fill(data) {
    // Not by assignment: data may have a member of any name, `__proto__` too.
    Object.defineProperties(this, Object.getOwnPropertyDescriptors(structuredClone(data)));
  }

  #clear() {
    for (const key of Object.keys(this)) delete this[key];
    return this;
  }

  #call(callback, error) {
    if (callback) process.nextTick(callback, error);
    return this;
  }
}

module.exports = session;
module.exports.session = session;
module.exports.Session = Session;
