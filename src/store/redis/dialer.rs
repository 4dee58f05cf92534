//! How connections are made: addresses, TLS, and the login.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub, PubSubSink, PubSubStream};
use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::connection::{Connection, Failure};
use super::sentinel::{self, Topology};
use super::settings::{Address, Place, RedisSettings, RedisSettingsError};
use crate::session::store::StoreError;
use crate::store::joint;

/// Where a connection leads.
#[derive(Clone)]
pub enum Target {
    At(Address),
    /// Wherever sentinels say that the primary of this name is.
    Primary {
        master: String,
        sentinels: Vec<Address>,
    },
}

/// Makes connections.
pub struct Dialer {
    pub settings: Arc<RedisSettings>,
    pub topology: Arc<Topology>,
    tls: Option<TlsConnector>,
}

/// A byte stream, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Dialer {
    /// Where the system's authorities count, they are read here.
    pub fn new(settings: Arc<RedisSettings>, topology: Arc<Topology>) -> Result<Self, RedisSettingsError> {
        let tls = settings.tls.then(|| tls(&settings)).transpose()?;
        Ok(Dialer { settings, topology, tls })
    }

    /// A connection to share.
    pub async fn connect(&self, target: &Target) -> Result<Rc<Connection>, StoreError> {
        let connect = async {
            let connection = match target {
                Target::At(address) => self.open(address).await?,
                Target::Primary { master, sentinels } => sentinel::connect(self, master, sentinels).await?,
            };
            Ok(Rc::new(connection))
        };
        self.in_time(connect).await
    }

    /// A connection to a node.
    pub async fn open(&self, address: &Address) -> Result<Connection, Failure> {
        self.open_as(address, &self.login()).await
    }

    /// A connection to a sentinel.
    pub async fn open_sentinel(&self, address: &Address) -> Result<Connection, Failure> {
        match self.open_as(address, &Self::introduction(self.credentials())).await {
            Err(failure) if self.may_do_without_credentials(&failure) => {
                self.open_as(address, &Self::introduction((None, None))).await
            }
            opened => opened,
        }
    }

    async fn open_as(&self, address: &Address, login: &RedisConnectionInfo) -> Result<Connection, Failure> {
        // Asks have a deadline of their own.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let stream = self.stream(address).await?;
        let connected = MultiplexedConnection::new_with_config(login, stream, config).await;
        let (client, driver) = connected.map_err(Failure::Lost)?;
        Ok(Connection::new(client, driver))
    }

    /// A connection to a node that does nothing but listen. Its task is the `redis` crate's, and ends with the second
    /// half.
    pub async fn listen(&self, address: &Address, channel: &str) -> Result<(PubSubSink, PubSubStream), Failure> {
        self.listen_as(address, &self.login(), channel).await
    }

    /// The same, to a sentinel.
    pub async fn listen_to_sentinel(
        &self,
        address: &Address,
        channel: &str,
    ) -> Result<(PubSubSink, PubSubStream), Failure> {
        match self.listen_as(address, &Self::introduction(self.credentials()), channel).await {
            Err(failure) if self.may_do_without_credentials(&failure) => {
                self.listen_as(address, &Self::introduction((None, None)), channel).await
            }
            listening => listening,
        }
    }

    async fn listen_as(
        &self,
        address: &Address,
        login: &RedisConnectionInfo,
        channel: &str,
    ) -> Result<(PubSubSink, PubSubStream), Failure> {
        let stream = self.stream(address).await?;
        let mut listener = PubSub::new(login, stream).await.map_err(Failure::Lost)?;
        listener.subscribe(channel).await.map_err(Failure::Lost)?;
        Ok(listener.split())
    }

    /// Within the time that a connection may take.
    pub async fn in_time<T>(&self, connect: impl Future<Output = Result<T, Failure>>) -> Result<T, StoreError> {
        within(self.settings.connect, connect).await
    }

    async fn stream(&self, address: &Address) -> Result<Box<dyn Stream>, Failure> {
        let unavailable = |error: io::Error| Failure::NotConnected(StoreError::Unavailable(error.to_string()));
        self.open_stream(address).await.map_err(unavailable)
    }

    async fn open_stream(&self, address: &Address) -> io::Result<Box<dyn Stream>> {
        let tcp = joint::tcp(&address.host, address.port, self.settings.connect).await?;
        let Some(connector) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = certificate_name(address).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Box::new(connector.connect(name, tcp).await?))
    }

    /// How a node is greeted.
    fn login(&self) -> RedisConnectionInfo {
        let database = match self.settings.place {
            Place::Cluster(_) => 0,
            Place::One(_) | Place::Sentinel { .. } => self.settings.database,
        };
        Self::introduction(self.credentials()).set_db(database)
    }

    fn introduction((username, password): Credentials<'_>) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default()
            // The order of replies is all that says whose they are: none may come unasked.
            .set_protocol(redis::ProtocolVersion::RESP2)
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if let Some(username) = username {
            login = login.set_username(username);
        }
        if let Some(password) = password {
            login = login.set_password(password);
        }
        login
    }

    fn credentials(&self) -> Credentials<'_> {
        (self.settings.username.as_deref(), self.settings.password.as_deref())
    }

    /// Sentinels often have no password where their nodes have one, and refuse any then.
    fn may_do_without_credentials(&self, failure: &Failure) -> bool {
        let is_refused = matches!(failure, Failure::Lost(error) if error.kind() == ErrorKind::AuthenticationFailed);
        is_refused && self.settings.password.is_some()
    }
}

/// Username and password.
type Credentials<'a> = (Option<&'a str>, Option<&'a str>);

/// Within some time.
pub async fn within<T>(limit: Duration, connect: impl Future<Output = Result<T, Failure>>) -> Result<T, StoreError> {
    let too_late = StoreError::Unavailable(format!("no connection within {limit:?}"));
    tokio::time::timeout(limit, connect).await.map_or(Err(too_late), |made| made.map_err(StoreError::from))
}

/// TLS is set up here and once: the `redis` crate would read the system's authorities again for every connection, on
/// the worker's thread.
fn tls(settings: &RedisSettings) -> Result<TlsConnector, RedisSettingsError> {
    let setup = |error: rustls::Error| RedisSettingsError::Tls(error.to_string());
    let named = match &settings.place {
        Place::One(address) => std::slice::from_ref(address),
        Place::Sentinel { nodes, .. } | Place::Cluster(nodes) => nodes.as_slice(),
    };
    // What is wrong with them is to be known now, and not at the first connection.
    named.iter().try_for_each(|address| certificate_name(address).map(|_| ()))?;
    let roots = settings.ca_pem.as_deref().map(authorities).transpose()?;
    let builder = ClientConfig::builder();
    let config = match roots {
        None => builder.with_platform_verifier().map_err(setup)?.with_no_client_auth(),
        Some(roots) => builder.with_root_certificates(roots).with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that a node's certificate has to bear.
fn certificate_name(address: &Address) -> Result<ServerName<'static>, RedisSettingsError> {
    let name = ServerName::try_from(address.host.clone());
    name.map_err(|_| RedisSettingsError::Name(address.host.clone()))
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, RedisSettingsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| RedisSettingsError::NoAuthority)?;
        roots.add(certificate).map_err(|error| RedisSettingsError::Tls(error.to_string()))?;
    }
    if roots.is_empty() { Err(RedisSettingsError::NoAuthority) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_certificates() {
        assert_eq!(authorities(b"").err(), Some(RedisSettingsError::NoAuthority));
        assert_eq!(authorities(b"hello").err(), Some(RedisSettingsError::NoAuthority));
    }

    #[test]
    fn with_tls_every_host_can_be_the_name_on_a_certificate() {
        let mut settings = RedisSettings::cluster(&["cache.internal", "10.0.0.1", "[::1]:7"]).unwrap();
        settings.ca_pem = Some(Vec::new());
        assert_eq!(tls(&settings).err(), Some(RedisSettingsError::NoAuthority), "the names are well");
        settings.place = Place::Cluster(vec![Address { host: "no name".to_owned(), port: 7 }]);
        assert_eq!(tls(&settings).err(), Some(RedisSettingsError::Name("no name".to_owned())));
    }
}
