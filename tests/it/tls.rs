//! TLS towards clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::Resumption;

use crate::support::certs::{Authority, Leaf};
use crate::support::client::{anything_goes, block_on};
use crate::support::{Client, Origin, Proxy, plain, tls};

/// The certificate that a client of this name is shown.
fn shown(proxy: &Proxy, name: &str) -> Vec<u8> {
    let config = Arc::new(anything_goes().with_no_client_auth());
    handshake(proxy, config, name).expect("a handshake").0
}

/// A whole handshake and one request: the certificate, whether it was resumed, and key exchange and cipher suite.
fn handshake(proxy: &Proxy, config: Arc<ClientConfig>, name: &str) -> Result<(Vec<u8>, bool, String), String> {
    use std::io::{Read, Write};
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut tcp = std::net::TcpStream::connect(proxy.address("main")).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let group = session.negotiated_key_exchange_group().map(|group| group.name());
    let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
    let chosen = format!("{group:?} {suite:?}");
    Ok((session.peer_certificates().map(|chain| chain[0].to_vec()).unwrap_or_default(), resumed, chosen))
}

fn with_certificates(leaves: &[(&str, &Leaf)], more: &str, origin: &Origin) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    leaves.iter().for_each(|(name, leaf)| leaf.write(directory.path(), name));
    let listed: Vec<String> =
        leaves.iter().map(|(name, _)| format!("{{ cert = \"{name}.pem\", key = \"{name}.key\" }}")).collect();
    let tables = format!("[listener.tls]\ncertificates = [{}]\n{more}[[route]]", listed.join(", "));
    let configuration = plain(&[origin], "").replace("[[route]]", &tables);
    (directory, configuration)
}

#[test]
fn sni_chooses_among_certificates_by_their_own_names() {
    let (authority, origin) = (Authority::new(), Origin::start("o"));
    let (a, b) = (authority.issue(&["a.test"]), authority.issue(&["*.b.test"]));
    let (directory, configuration) = with_certificates(&[("a", &a), ("b", &b)], "", &origin);
    let proxy = Proxy::start_in(directory, &configuration);
    assert_eq!(shown(&proxy, "a.test"), a.der.to_vec());
    assert_eq!(shown(&proxy, "x.b.test"), b.der.to_vec());
    assert_eq!(shown(&proxy, "elsewhere.test"), a.der.to_vec());
    // A reused HTTP/2 connection must not reach a host that its certificate does not cover.
    let mut client = proxy.tls_client().http2().server_name("a.test");
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.clone().host("x.b.test").get("/").status, 421);
    assert_eq!(proxy.metric("steadfast_certificate_expiry_timestamp_seconds", &["name=\"a.test\""]).signum(), 1.0);
}

#[test]
fn client_certificates_are_asked_for_verified_and_told() {
    let (authority, origin) = (Authority::new(), Origin::start("o"));
    let leaf = authority.issue(&["localhost"]);
    let (directory, configuration) = with_certificates(&[("site", &leaf)], "client_ca = \"clients.pem\"\n", &origin);
    std::fs::write(directory.path().join("clients.pem"), authority.pem()).unwrap();
    let proxy = Proxy::start_in(directory, &configuration);
    assert!(proxy.tls_client().try_get("/").is_err(), "no certificate");
    let with = |leaf: &Leaf| anything_goes().with_client_auth_cert(vec![leaf.der.clone()], leaf.key()).unwrap();
    assert!(
        proxy.tls_client().with_tls(with(&Authority::new().issue(&["mallory"]))).try_get("/").is_err(),
        "a stranger's"
    );
    let alice = authority.issue(&["alice"]);
    let reply = proxy.tls_client().with_tls(with(&alice)).header("Client-Cert", ":Zm9yZ2Vk:").get("/");
    assert_eq!(reply.status, 200);
    let told = origin.last().header("client-cert");
    assert_eq!(told, format!(":{}:", data_encoding::BASE64.encode(&alice.der)));
    assert_eq!(proxy.metric("steadfast_tls_handshakes_total", &["version=\"failed\""]), 2.0);
}

#[test]
fn tickets_of_one_proxy_are_resumed_by_another_of_the_same_ring() {
    let origin = Origin::start("o");
    let start = |key: u8| {
        let directory = tempfile::tempdir().unwrap();
        let key = steadfast::keys::RingKey::from_secret([key; 32]);
        std::fs::write(directory.path().join("ring.key"), key.to_line().as_bytes()).unwrap();
        Proxy::start_in(directory, &format!("[keys]\nring = [\"file:ring.key\"]\n{}", tls(&[&origin], "")))
    };
    let (one, two, stranger) = (start(1), start(1), start(2));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        steadfast::tls::install_provider();
        let mut config = ClientConfig::builder_with_protocol_versions(&[version])
            .dangerous()
            .with_custom_certificate_verifier(crate::support::client::any_certificate())
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        let resumed = |proxy: &Proxy| handshake(proxy, Arc::clone(&config), "localhost").unwrap().1;
        assert!(!resumed(&one), "the first is a full one");
        assert!(resumed(&two), "the other proxy opens its ticket");
        assert!(!resumed(&stranger), "a stranger does not");
    }
}

#[test]
fn the_post_quantum_hybrid_and_aes_128_are_preferred_and_old_versions_can_be_shut_out() {
    let origin = Origin::start("o");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    // A client of rustls' own order: it puts AES-256 first.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(crate::support::client::any_certificate());
    let chosen = handshake(&proxy, Arc::new(config.with_no_client_auth()), "localhost").unwrap().2;
    assert!(chosen.contains("X25519MLKEM768") && chosen.contains("TLS13_AES_128_GCM_SHA256"), "{chosen}");
    let modern = Proxy::start(&tls(&[&origin], "").replace("[listener.tls]", "[listener.tls]\nmin_version = \"1.3\""));
    let old = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .dangerous()
        .with_custom_certificate_verifier(crate::support::client::any_certificate())
        .with_no_client_auth();
    assert!(handshake(&proxy, Arc::new(old.clone()), "localhost").is_ok());
    assert!(handshake(&modern, Arc::new(old), "localhost").is_err());
}

/// Without TCP_NODELAY on both sides each of these waits 40 ms for a delayed acknowledgement.
#[test]
fn small_exchanges_do_not_wait_for_acknowledgements() {
    let origin = Origin::start("o");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    let client: Client = proxy.tls_client();
    let fastest = block_on(async {
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            let at = Instant::now();
            let mut connection = client.connect().await?;
            for _ in 0..3 {
                let request = client.request(http::Method::POST, "/echo").body("x".into()).unwrap();
                connection.send(request).await?;
            }
            fastest = fastest.min(at.elapsed());
        }
        Ok(fastest)
    });
    // The fastest of ten, so that a busy machine does not matter: it would be over 120 ms with the delays.
    let fastest = fastest.unwrap();
    assert!(fastest < Duration::from_millis(38), "{fastest:?}");
}
