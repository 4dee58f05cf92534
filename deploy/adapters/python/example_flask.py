"""A small shop: PORT=8081 NAME=shop-1 AUDIENCE=shop JWKS=http://127.0.0.1:9900/.well-known/jwks.json python example_flask.py"""

import os

from flask import Flask, redirect, request, session

from steadfast_session.flask import SteadfastSessions

NAME = os.environ.get("NAME", "shop")

app = Flask(__name__)
app.session_interface = SteadfastSessions(
    audience=os.environ.get("AUDIENCE", "shop"),
    jwks=os.environ.get("JWKS", "http://127.0.0.1:9900/.well-known/jwks.json"),
)


@app.get("/healthz")
def healthz():
    return "ok", {"Content-Type": "text/plain"}


@app.get("/")
@app.get("/api/whoami")
def whoami():
    session["visits"] = session.get("visits", 0) + 1
    return {"server": NAME, "user": session.subject, "cart": session.get("cart", []), "visits": session["visits"]}


@app.post("/login")
def login():
    user = request.form.get("user")
    if user:
        session.login(user, acr="pwd", amr=["pwd"])
    return redirect("/", 303)


@app.post("/cart")
def cart():
    item = request.form.get("item")
    if item:
        session.setdefault("cart", []).append(item)
    return redirect("/", 303)


@app.post("/logout")
def logout():
    session.logout()
    return redirect("/", 303)


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ.get("PORT", "8081")), threaded=True)
