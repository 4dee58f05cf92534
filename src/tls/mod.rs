//! TLS: certificates and their names, listeners' configurations, tickets, and TLS towards servers.
//!
//! Every rustls type that is built here stays behind this module, so that its next major version is one room's work.
//! TLS 1.2 and 1.3 by rustls over aws-lc-rs, the post-quantum hybrid X25519MLKEM768 preferred.

mod certificate;
mod client;
mod tickets;

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore};

pub use certificate::{Certificate, CertificateError, Names, certificates_from_pem, load, self_signed};
pub use client::{ClientError, ClientSettings, any_certificate, client_config, client_of_one};
pub use rustls::pki_types::ServerName;
pub use rustls::{ClientConfig, ServerConfig};

use crate::keys::KeyRing;
use crate::names::words;

words! {
    /// The oldest TLS version that a listener accepts.
    MinVersion {
        Tls12 = "1.2",
        Tls13 = "1.3",
    }
}

words! {
    /// Whether a client must show a certificate.
    ClientAuth {
        Required = "required",
        Optional = "optional",
    }
}

/// Installs the process's crypto provider; the first thing that `main` does.
pub fn install_provider() {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    // A second call finds one installed already, which is as good.
    let _ = provider.install_default();
}

/// The suites that come first: nobody breaks AES-128, and on processors that have instructions for SHA-256 alone a
/// handshake with SHA-384 takes a tenth more.
fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// The TLS settings of a listener, with what they name already loaded.
#[derive(Clone)]
pub struct Settings {
    pub certificates: Vec<Arc<Certificate>>,
    pub min_version: MinVersion,
    /// Authorities of client certificates; empty: none are asked for.
    pub client_ca: Vec<rustls::pki_types::CertificateDer<'static>>,
    pub client_auth: ClientAuth,
}

/// TLS of one listener, ready to accept.
pub struct Endpoint {
    pub config: Arc<ServerConfig>,
    certificates: Arc<ByName>,
}

impl Endpoint {
    /// Builds the configuration of the listener `name`.
    pub fn new(settings: &Settings, name: &str, ring: Arc<KeyRing>) -> Result<Self, rustls::Error> {
        let versions: &[&rustls::SupportedProtocolVersion] = match settings.min_version {
            MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_protocol_versions(versions);
        let builder = if settings.client_ca.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_verifier(client_verifier(settings)?)
        };
        let certificates = Arc::new(ByName::new(&settings.certificates));
        let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(tickets::Ticketer::new(ring, name, &settings.client_ca, settings.client_auth));
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        // Our order of cipher suites counts: audits ask for it.
        config.ignore_client_order = true;
        Ok(Endpoint { config: Arc::new(config), certificates })
    }

    /// The same without HTTP/2.
    pub fn only_http1(self) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Endpoint { config: Arc::new(config), ..self }
    }

    /// What a finished handshake showed.
    pub fn facts(&self, session: &rustls::ServerConnection) -> Facts {
        let sni = session.server_name().map(|name| name.to_ascii_lowercase().into_boxed_str());
        let client_certificate = session.peer_certificates().and_then(|chain| chain.first());
        let shown = &self.certificates.candidates(sni.as_deref())[0];
        Facts {
            names: Arc::clone(&shown.names),
            self_signed: shown.self_signed,
            sni,
            client_certificate: client_certificate.map(|certificate| certificate.as_ref().into()),
            resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            tls13: session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3),
        }
    }
}

/// What a TLS handshake showed.
pub struct Facts {
    pub sni: Option<Box<str>>,
    /// The names of the certificate that was shown to the client.
    pub names: Arc<Names>,
    /// That certificate is nobody's but our own.
    pub self_signed: bool,
    /// The client's own certificate, in DER form.
    pub client_certificate: Option<Box<[u8]>>,
    pub resumed: bool,
    pub tls13: bool,
}

fn client_verifier(settings: &Settings) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in &settings.client_ca {
        roots.add(authority.clone())?;
    }
    let builder = WebPkiClientVerifier::builder(Arc::new(roots));
    let builder = match settings.client_auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| rustls::Error::General(error.to_string()))
}

/// Certificates by their own names; the first one for clients that name none of them.
#[derive(Debug)]
struct ByName {
    exact: HashMap<Box<str>, Vec<Arc<Certificate>>>,
    wildcard: HashMap<Box<str>, Vec<Arc<Certificate>>>,
    first: Vec<Arc<Certificate>>,
}

impl ByName {
    fn new(certificates: &[Arc<Certificate>]) -> Self {
        let mut by_name = ByName { exact: HashMap::new(), wildcard: HashMap::new(), first: certificates.to_vec() };
        for certificate in certificates {
            for name in certificate.names.dns() {
                let (map, name) = match name.strip_prefix('*') {
                    Some(suffix) => (&mut by_name.wildcard, suffix),
                    None => (&mut by_name.exact, name),
                };
                map.entry(name.into()).or_default().push(Arc::clone(certificate));
            }
        }
        by_name
    }

    /// Certificates for a name, in the order of configuration; several where key types differ.
    fn candidates(&self, sni: Option<&str>) -> &[Arc<Certificate>] {
        let Some(name) = sni else { return &self.first };
        let wildcard = || self.wildcard.get(&name[name.find('.')?..]);
        self.exact.get(name).or_else(wildcard).unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let candidates = self.candidates(name.as_deref());
        let fits =
            |certificate: &&Arc<Certificate>| certificate.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let chosen = candidates.iter().find(fits).or(candidates.first())?;
        Some(Arc::clone(&chosen.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_chosen_by_its_own_names() {
        install_provider();
        let made = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            self_signed(&names).unwrap()
        };
        let certificates = [made(&["a.test"]), made(&["*.b.test", "c.test"])];
        let by_name = ByName::new(&certificates);
        for (sni, wanted) in [
            (Some("a.test"), 0),
            (Some("x.b.test"), 1),
            (Some("c.test"), 1),
            (Some("y.x.b.test"), 0),
            (None, 0),
            (Some("z"), 0),
        ] {
            assert!(Arc::ptr_eq(&by_name.candidates(sni)[0], &certificates[wanted]), "{sni:?}");
        }
    }
}
