//! An issuer of tokens: its keys, and whatever it is told to sign.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::certs::Leaf;

pub const ISSUER: &str = "https://id.example.com";

/// One key of an issuer.
pub struct Issuer {
    pair: Ed25519KeyPair,
    pub kid: &'static str,
}

impl Issuer {
    /// A key that is made of one byte, so that tests can make it again.
    pub fn new(kid: &'static str, byte: u8) -> Self {
        Issuer { pair: Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap(), kid }
    }

    /// Its public key, as a JWK.
    pub fn jwk(&self) -> Value {
        let public = BASE64URL_NOPAD.encode(self.pair.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "use": "sig", "alg": "EdDSA", "x": public })
    }

    /// A token of these claims, as they are.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": self.kid });
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = BASE64URL_NOPAD.encode(self.pair.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }

    /// A token of somebody, for an hour; `more` overrides.
    pub fn token(&self, subject: &str, more: &Value) -> String {
        let now = now();
        let mut claims = json!({
            "iss": ISSUER, "aud": "shop", "sub": subject, "iat": now, "exp": now + 3_600,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        self.sign(&claims)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A key set of these keys.
pub fn key_set(issuers: &[&Issuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// An https server that shows a key set, which can be changed, and says what it was asked.
pub struct KeyServer {
    pub port: u16,
    /// Status line and body of its answers.
    answer: Arc<Mutex<(String, String)>>,
    asked: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl KeyServer {
    pub fn start(leaf: &Leaf, keys: String) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(Mutex::new(("200 OK".to_owned(), keys)));
        let asked = Arc::<AtomicUsize>::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let mut config = (*leaf.server_config()).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (acceptor, answers, count) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serving = async {
                    while let Ok((tcp, _)) = listener.accept().await {
                        let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                        let _ = stream.read(&mut [0; 4_096]).await;
                        count.fetch_add(1, Ordering::SeqCst);
                        let (status, body) = answers.lock().unwrap().clone();
                        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                        let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                        let _ = stream.shutdown().await;
                    }
                };
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
        });
        KeyServer { port, answer, asked, stop: Some(stop) }
    }

    pub fn answers(&self, status: &str, body: String) {
        *self.answer.lock().unwrap() = (status.to_owned(), body);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}
