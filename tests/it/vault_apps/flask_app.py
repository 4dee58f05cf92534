"""A plain Flask application whose session is the signed cookie that Flask makes: SECRET=... PORT=0 python flask_app.py

It prints the port that it listens on. Every answer names the process that gave it.
"""

import os

from flask import Flask, redirect, request, session
from werkzeug.serving import make_server

app = Flask(__name__)
app.secret_key = os.environ["SECRET"]


@app.after_request
def name_the_process(response):
    response.headers["X-Pid"] = str(os.getpid())
    return response


@app.get("/")
def index():
    return {"pid": os.getpid(), "user": session.get("user"), "count": session.get("count", 0)}


@app.post("/login")
def login():
    user = request.form.get("user")
    if user:
        session["user"] = user
    return redirect("/", 302)


@app.post("/add")
def add():
    session["count"] = session.get("count", 0) + 1
    return index()


@app.post("/logout")
def logout():
    session.clear()
    return redirect("/", 302)


@app.get("/seen")
def seen():
    """The cookies as they came."""
    return {"pid": os.getpid(), "cookie": request.headers.get("Cookie", "")}


if __name__ == "__main__":
    server = make_server("127.0.0.1", int(os.environ.get("PORT", "0")), app, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()
