//! TLS towards servers.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;

/// How a server's certificate is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// Off: any certificate is taken.
    pub verify: bool,
    /// Authorities; none: the system's.
    pub ca: Vec<CertificateDer<'static>>,
    pub http2: bool,
}

/// Why TLS towards servers cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("TLS to the servers cannot be set up: {0}")]
pub struct ClientError(#[from] rustls::Error);

/// A configuration for connecting to servers.
pub fn client_config(settings: &ClientSettings) -> Result<Arc<ClientConfig>, ClientError> {
    let builder = ClientConfig::builder();
    let mut config = if !settings.verify {
        builder.dangerous().with_custom_certificate_verifier(any_certificate()?).with_no_client_auth()
    } else if settings.ca.is_empty() {
        builder.with_platform_verifier()?.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for authority in &settings.ca {
            roots.add(authority.clone())?;
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    config.alpn_protocols = vec![if settings.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(Arc::new(config))
}

/// A configuration for connecting to whoever holds the key of this very certificate, whatever its names.
pub fn client_of_one(certificate: CertificateDer<'static>) -> Result<Arc<ClientConfig>, ClientError> {
    let verifier = holder_of_key(Some(certificate))?;
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// Takes any certificate whose holder has its key: the connection is private against listeners, not against impostors.
pub fn any_certificate() -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    holder_of_key(None)
}

fn holder_of_key(only: Option<CertificateDer<'static>>) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let provider = CryptoProvider::get_default().ok_or(rustls::Error::General("no crypto provider".into()))?;
    Ok(Arc::new(HolderOfKey { provider: Arc::clone(provider), only }))
}

/// Goes by no authority: whoever shows the certificate must have its key.
#[derive(Debug)]
struct HolderOfKey {
    provider: Arc<CryptoProvider>,
    /// The one that is taken; none: any.
    only: Option<CertificateDer<'static>>,
}

impl ServerCertVerifier for HolderOfKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.only.as_ref().is_some_and(|only| only != certificate) {
            return Err(CertificateError::UnknownIssuer.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
