// A plain Express application whose session is the signed cookie that cookie-session makes:
// SECRET=... PORT=0 node express_app.mjs
//
// It prints the port that it listens on. Every answer names the process that gave it.
import { createRequire } from "node:module";

// Unlike `import` this finds what NODE_PATH names.
const require = createRequire(import.meta.url);
const cookieSession = require("cookie-session");
const express = require("express");

const { PORT = "0", SECRET } = process.env;

const app = express();
app.use(cookieSession({ name: "session", keys: [SECRET] }));
app.use(express.urlencoded({ extended: false }));
app.use((request, response, next) => {
  response.set("X-Pid", String(process.pid));
  next();
});

const index = (request, response) => {
  const { user = null, count = 0 } = request.session;
  response.json({ pid: process.pid, user, count });
};

app.get("/", index);

app.post("/login", (request, response) => {
  const user = request.body?.user;
  if (user) request.session.user = user;
  response.redirect(302, "/");
});

app.post("/add", (request, response) => {
  request.session.count = (request.session.count ?? 0) + 1;
  index(request, response);
});

app.post("/logout", (request, response) => {
  request.session = null;
  response.redirect(302, "/");
});

// The cookies as they came.
app.get("/seen", (request, response) => {
  response.json({ pid: process.pid, cookie: request.headers.cookie ?? "" });
});

const server = app.listen(Number(PORT), "127.0.0.1", () => console.log(server.address().port));
