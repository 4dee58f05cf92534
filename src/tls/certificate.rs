//! Certificates: loading, the names they are for, and when they end.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {0}: {1}")]
    Read(String, std::io::Error),
    #[error("{0} holds no certificate in PEM form")]
    NoCertificate(String),
    #[error("{0} holds no private key in PEM form")]
    NoKey(String),
    #[error("{0} is no certificate: {1}")]
    Parse(String, String),
    #[error("key and certificate do not belong together, or the key cannot be used: {0}")]
    Mismatch(rustls::Error),
    #[error("no certificate could be made: {0}")]
    Generate(String),
}

/// The names that a certificate is for.
#[derive(Debug, Default)]
pub struct Names {
    dns: Vec<Box<str>>,
    addresses: Vec<std::net::IpAddr>,
}

impl Names {
    /// DNS names in lower case, wildcards as `*.example.com`.
    pub fn dns(&self) -> impl Iterator<Item = &str> {
        self.dns.iter().map(|name| &**name)
    }

    /// Whether the certificate is valid for a host, as a Host header names it (RFC 6125, section 6.4).
    pub fn cover(&self, host: &str) -> bool {
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
            return self.addresses.contains(&address);
        }
        let after_label = host.find('.').map(|dot| &host[dot..]);
        self.dns().any(|name| match name.strip_prefix('*') {
            Some(suffix) => after_label == Some(suffix),
            None => name == host,
        })
    }
}

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    pub names: Arc<Names>,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
    pub self_signed: bool,
}

impl Certificate {
    /// The name that stands for it in metrics: its first one.
    pub fn label(&self) -> &str {
        self.names.dns().next().unwrap_or("-")
    }
}

/// Reads a chain and its key.
pub fn load(chain: &Path, key: &Path) -> Result<Certificate, CertificateError> {
    let chain_name = chain.display().to_string();
    let key_name = key.display().to_string();
    let chain = certificates_from_pem(&read(chain)?, &chain_name)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| CertificateError::NoKey(key_name))?;
    build(chain, key, &chain_name, false)
}

/// All certificates of a PEM text; at least one.
pub fn certificates_from_pem(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(CertificateError::NoCertificate(name.to_owned())),
    }
}

/// A certificate for development, of its own signature. It is made once per process and names: a reload keeps it.
pub fn self_signed(names: &[String]) -> Result<Arc<Certificate>, CertificateError> {
    static MADE: Mutex<Vec<(Vec<String>, Arc<Certificate>)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock();
    if let Some((_, certificate)) = made.iter().find(|(known, _)| known == names) {
        return Ok(Arc::clone(certificate));
    }
    let certificate = Arc::new(make_self_signed(names)?);
    made.push((names.to_vec(), Arc::clone(&certificate)));
    Ok(certificate)
}

fn make_self_signed(names: &[String]) -> Result<Certificate, CertificateError> {
    let made =
        rcgen::generate_simple_self_signed(names).map_err(|error| CertificateError::Generate(error.to_string()))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    build(vec![made.cert.der().clone()], key, "self-signed", true)
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|error| CertificateError::Read(path.display().to_string(), error))
}

fn build(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    name: &str,
    self_signed: bool,
) -> Result<Certificate, CertificateError> {
    let parse_error = |why: String| CertificateError::Parse(name.to_owned(), why);
    let (_, parsed) = X509Certificate::from_der(&chain[0]).map_err(|error| parse_error(error.to_string()))?;
    let names = names_of(&parsed);
    let not_after = parsed.validity().not_after.timestamp();
    let provider = CryptoProvider::get_default().ok_or_else(|| parse_error("no crypto provider".to_owned()))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(CertificateError::Mismatch)?;
    Ok(Certificate { key: Arc::new(key), names: Arc::new(names), not_after, self_signed })
}

fn names_of(certificate: &X509Certificate<'_>) -> Names {
    let mut names = Names::default();
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return names };
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.dns.push(name.to_ascii_lowercase().into()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
                names.addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from)));
            }
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cover_hosts_and_wildcards_one_label() {
        crate::tls::install_provider();
        let made = self_signed(&["a.test".to_owned(), "*.b.test".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        for (host, covered) in [
            ("a.test", true),
            ("x.b.test", true),
            ("b.test", false),
            ("y.x.b.test", false),
            ("127.0.0.1", true),
            ("[::1]", false),
        ] {
            assert_eq!(made.names.cover(host), covered, "{host}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let error = load(Path::new("/nowhere/a.pem"), Path::new("/nowhere/a.key")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/a.pem"), "{error}");
        assert!(certificates_from_pem(b"hello", "x.pem").unwrap_err().to_string().contains("x.pem"));
    }
}
