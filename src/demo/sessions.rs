//! Who keeps the shop's sessions: this process, in its memory, as most applications do, or the proxy, by its contract. (In a
//! stateless pool nobody does: see `carried`.)

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use crate::headers;
use crate::keys::random_secret;
use crate::session::contract;

const COOKIE: &str = "shop_session";
/// Sessions that a process remembers; the oldest is forgotten past it. Users who are made up come by the thousand, and
/// must not push out the one who only looks at the dashboard for a while.
const MOST_SESSIONS: usize = 100_000;
/// The largest cart, as JSON: the proxy leaves data over 2 KiB out of its token.
const MOST_CART_BYTES: usize = 1_800;

/// A session as the shop shows it.
#[derive(Clone, Default)]
pub struct Session {
    pub user: Option<String>,
    pub cart: Vec<String>,
    pub visits: u64,
    /// Its user had another before, which is not known here.
    pub lost: bool,
}

impl Session {
    /// Puts something into the cart; whether there was room.
    pub fn add(&mut self, item: &str) -> bool {
        self.cart.push(item.to_owned());
        let fits = json!(self.cart).to_string().len() <= MOST_CART_BYTES;
        if !fits {
            self.cart.pop();
        }
        fits
    }
}

/// Header fields of a response, by which what has changed is kept.
pub type Fields = Vec<(HeaderName, String)>;

/// The session of one request, with who keeps it.
pub trait Keeping {
    /// Where it is kept, as the page says it.
    fn place(&self) -> &'static str;

    /// What that means to its user.
    fn meaning(&self) -> &'static str;

    /// What is to be known of the cart besides.
    fn of_cart(&self) -> &'static str {
        ""
    }

    /// What the proxy has told of the user; nothing where it knows of none.
    fn claims(&self) -> Option<&Value> {
        None
    }

    /// Counts a visit, and gives what is to be shown.
    fn visit(&self) -> (Session, Fields);

    fn add(&self, item: &str) -> Fields;

    fn log_in(&self, user: &str) -> Fields;

    /// The user has shown more; nothing where nobody has logged in, or where the proxy would not know.
    fn step_up(&self) -> Option<Fields> {
        None
    }

    fn log_out(&self) -> Fields;

    /// The command that ends what a logout leaves; nothing where it leaves nothing.
    fn revocation(&self) -> Option<String> {
        None
    }
}

/// The sessions in this process's memory.
#[derive(Default)]
pub struct Memory {
    by_id: HashMap<String, Session>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Memory {
    fn create(&mut self, session: Session) -> String {
        if self.order.len() >= MOST_SESSIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        let id = HEXLOWER.encode(&random_secret()[..16]);
        self.order.push_back(id.clone());
        self.by_id.insert(id.clone(), session);
        id
    }
}

/// A session in this process's memory: its cookie finds it.
pub struct Own<'a> {
    memory: &'a RefCell<Memory>,
    id: Option<String>,
}

impl<'a> Own<'a> {
    pub fn of(memory: &'a RefCell<Memory>, headers: &HeaderMap) -> Self {
        let mut ours = headers::cookies(headers).filter(|(name, _)| *name == COOKIE.as_bytes());
        let id = ours.next().and_then(|(_, value)| String::from_utf8(value.to_vec()).ok());
        Own { memory, id }
    }

    /// A new session. Whoever shows an id for which there is none had one before.
    fn first(&self) -> Session {
        Session { lost: self.id.is_some(), ..Session::default() }
    }

    /// Changes the session, which is made on the first visit.
    fn change<T>(&self, act: impl FnOnce(&mut Session) -> T) -> (T, Fields) {
        let mut memory = self.memory.borrow_mut();
        // An id that we did not give is never taken over.
        let known = self.id.clone().filter(|id| memory.by_id.contains_key(id));
        let id = known.unwrap_or_else(|| memory.create(self.first()));
        let done = act(memory.by_id.entry(id.clone()).or_default());
        (done, vec![cookie(&id)])
    }
}

impl Keeping for Own<'_> {
    fn place(&self) -> &'static str {
        "in this server's memory"
    }

    fn meaning(&self) -> &'static str {
        "This server keeps your session in its own memory. The proxy keeps you on this server; when it ends, your \
         session ends with it."
    }

    fn visit(&self) -> (Session, Fields) {
        self.change(|session| {
            session.visits += 1;
            let shown = session.clone();
            // A loss is told once.
            session.lost = false;
            shown
        })
    }

    fn add(&self, item: &str) -> Fields {
        self.change(|session| session.add(item)).1
    }

    /// A login gets a new id, so that one that was planted before is worth nothing.
    fn log_in(&self, user: &str) -> Fields {
        let mut memory = self.memory.borrow_mut();
        let before = self.id.as_ref().and_then(|id| memory.by_id.remove(id));
        let session = before.unwrap_or_else(|| self.first());
        let id = memory.create(Session { user: Some(user.to_owned()), ..session });
        vec![cookie(&id)]
    }

    fn log_out(&self) -> Fields {
        if let Some(id) = &self.id {
            self.memory.borrow_mut().by_id.remove(id);
        }
        vec![(header::SET_COOKIE, format!("{COOKIE}=; Path=/; Max-Age=0"))]
    }
}

fn cookie(id: &str) -> (HeaderName, String) {
    (header::SET_COOKIE, format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Lax; Secure"))
}

/// A session that the proxy keeps: it tells it in a signed token, and does what the response says of it.
///
/// The demo's servers listen on loopback and believe the token. A real application checks its signature by the proxy's
/// keys (JWKS), as the adapters in `deploy/` do.
pub struct Told {
    /// Names the attempt; what is said of the session repeats it.
    nonce: String,
    claims: Value,
}

impl Told {
    /// None where the proxy keeps no sessions.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let claims = claims(headers)?;
        let nonce = headers.get(contract::REQUEST).and_then(|nonce| nonce.to_str().ok()).unwrap_or_default();
        Some(Told { nonce: nonce.to_owned(), claims })
    }

    fn session(&self) -> Session {
        let data = &self.claims["d"];
        let items = data["cart"].as_array().into_iter().flatten();
        Session {
            user: subject(&self.claims).map(str::to_owned),
            cart: items.filter_map(Value::as_str).map(str::to_owned).collect(),
            visits: data["visits"].as_u64().unwrap_or_default(),
            lost: false,
        }
    }

    fn patch(&self, patch: &Value) -> (HeaderName, String) {
        (contract::PATCH, format!("{}.{}", self.nonce, BASE64URL_NOPAD.encode(patch.to_string().as_bytes())))
    }

    fn operation(&self, operation: &str) -> Fields {
        vec![(contract::OP, format!("{operation};rid=\"{}\"", self.nonce))]
    }
}

impl Keeping for Told {
    fn place(&self) -> &'static str {
        "by the proxy, in its store"
    }

    fn meaning(&self) -> &'static str {
        "The proxy keeps your session in its store. Any of the servers can serve you; when one ends, another goes on \
         with the same session."
    }

    fn claims(&self) -> Option<&Value> {
        Some(&self.claims)
    }

    fn visit(&self) -> (Session, Fields) {
        let mut session = self.session();
        session.visits += 1;
        // Of two pages at the same time one may go uncounted: no page is refused for that.
        let fields = vec![self.patch(&json!({ "visits": session.visits }))];
        (session, fields)
    }

    fn add(&self, item: &str) -> Fields {
        let mut session = self.session();
        if !session.add(item) {
            return Fields::new();
        }
        // The whole cart is written: never over what another request has put there meanwhile.
        let version = self.claims["ver"].as_u64().unwrap_or_default();
        vec![self.patch(&json!({ "cart": session.cart })), (contract::ONLY_IF, version.to_string())]
    }

    fn log_in(&self, user: &str) -> Fields {
        self.operation(&format!("login;sub={}", display_string(user)))
    }

    /// As a login, it makes a new session: what was copied of the one before is worth nothing to whoever has it.
    fn step_up(&self) -> Option<Fields> {
        subject(&self.claims).map(|_| self.operation("step-up;acr=\"mfa\""))
    }

    fn log_out(&self) -> Fields {
        self.operation("logout")
    }
}

/// What the proxy says of whoever asks; nothing where it knows of no sessions.
pub fn claims(headers: &HeaderMap) -> Option<Value> {
    headers.get(contract::SESSION).map(|token| payload(token).unwrap_or_default())
}

/// The middle one of a token's three parts (JWS).
fn payload(token: &HeaderValue) -> Option<Value> {
    let payload = token.to_str().ok()?.split('.').nth(1)?;
    serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()
}

/// Who has logged in.
pub fn subject(claims: &Value) -> Option<&str> {
    claims["sub"].as_str()
}

/// Any text, as it may stand in a structured field (RFC 9651, section 3.3.8).
fn display_string(text: &str) -> String {
    let written = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    });
    format!("%\"{}\"", written.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SystemEntropy;
    use crate::session::contract::Nonce;
    use crate::session::{Directives, How, Turn};

    fn told(nonce: &Nonce, claims: &Value) -> Told {
        let token = format!("e30.{}.", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        let mut headers = HeaderMap::new();
        headers.insert(contract::SESSION, token.parse().unwrap());
        headers.insert(contract::REQUEST, nonce.text().parse().unwrap());
        Told::of(&headers).unwrap()
    }

    /// What the proxy makes of these fields.
    fn read(nonce: &Nonce, fields: Fields) -> Directives {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value.parse().unwrap());
        }
        let said = contract::directives(&headers, nonce).unwrap();
        assert_eq!(said.foreign, 0);
        said.directives
    }

    #[test]
    fn the_proxy_understands_what_is_said_of_a_session_that_it_keeps() {
        let nonce = Nonce::new(&mut SystemEntropy);
        let told = told(&nonce, &json!({ "sub": "Ada", "ver": 7, "d": { "cart": ["Kettle"], "visits": 3 } }));
        let (session, fields) = told.visit();
        assert_eq!((session.user.as_deref(), session.visits, session.cart.len()), (Some("Ada"), 4, 1));
        assert_eq!(read(&nonce, fields).patch.map(Value::from), Some(json!({ "visits": 4 })));
        let added = read(&nonce, told.add("Teapot"));
        assert_eq!(
            (added.patch.map(Value::from), added.only_if),
            (Some(json!({ "cart": ["Kettle", "Teapot"] })), Some(7))
        );
        let name = "Zoë \"<3\" 100% \\";
        let login = Turn::Login { subject: name.into(), how: How::default() };
        assert_eq!(read(&nonce, told.log_in(name)).turn, Some(login));
        let more = Turn::StepUp(How { acr: "mfa".into(), ..How::default() });
        assert_eq!(read(&nonce, told.step_up().unwrap()).turn, Some(more));
        assert_eq!(read(&nonce, told.log_out()).turn, Some(Turn::Logout));
    }

    #[test]
    fn no_session_is_an_empty_one_and_a_cart_gets_full() {
        let nonce = Nonce::new(&mut SystemEntropy);
        let nobody = told(&nonce, &json!({ "st": "none", "ver": 0 }));
        assert!(nobody.step_up().is_none(), "there is no login to step up from");
        let (session, _) = nobody.visit();
        assert_eq!((session.user, session.visits, session.cart.len(), session.lost), (None, 1, 0, false));
        let full = told(&nonce, &json!({ "ver": 1, "d": { "cart": vec!["Teapot"; 199] } }));
        assert!(full.add("A teapot too many").is_empty());
    }

    #[test]
    fn who_comes_with_an_id_that_is_not_known_is_told_once_that_it_was_lost() {
        let memory = RefCell::default();
        let mut headers = HeaderMap::new();
        let visit = |headers: &HeaderMap| {
            let (session, fields) = Own::of(&memory, headers).visit();
            (session.lost, fields[0].1.split(';').next().unwrap().parse::<HeaderValue>().unwrap())
        };
        assert!(!visit(&headers).0, "a first visit has lost nothing");
        headers.insert(header::COOKIE, HeaderValue::from_static("shop_session=of-another-process"));
        let (lost, cookie) = visit(&headers);
        assert!(lost && cookie != headers[header::COOKIE], "an id of others is never taken over");
        headers.insert(header::COOKIE, cookie);
        assert!(!visit(&headers).0);
    }
}
