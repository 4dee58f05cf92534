// A small shop: PORT=8081 NAME=shop-1 AUDIENCE=shop JWKS=http://127.0.0.1:9900/.well-known/jwks.json node example.mjs
import { createRequire } from "node:module";
import session from "./index.js";

// Unlike `import` this finds what NODE_PATH names.
const express = createRequire(import.meta.url)("express");

const { PORT = "8081", NAME = "shop", AUDIENCE = "shop", JWKS = "http://127.0.0.1:9900/.well-known/jwks.json" } = process.env;

const app = express();
// Probes do not come with a session.
app.get("/healthz", (request, response) => response.type("text/plain").send("ok"));
app.use(session({ audience: AUDIENCE, jwks: JWKS }));
app.use(express.urlencoded({ extended: false }));

app.get(["/", "/api/whoami"], (request, response) => {
  const { session, steadfast } = request;
  session.visits = (session.visits ?? 0) + 1;
  response.json({ server: NAME, user: steadfast.sub ?? null, cart: session.cart ?? [], visits: session.visits });
});

app.post("/login", (request, response) => {
  const user = request.body?.user;
  if (user) request.session.login({ subject: user, acr: "pwd", amr: ["pwd"] });
  response.redirect(303, "/");
});

app.post("/cart", (request, response) => {
  const item = request.body?.item;
  if (item) request.session.cart = [...(request.session.cart ?? []), item];
  response.redirect(303, "/");
});

app.post("/logout", (request, response) => {
  request.session.destroy(() => response.redirect(303, "/"));
});

app.listen(Number(PORT), "127.0.0.1");
