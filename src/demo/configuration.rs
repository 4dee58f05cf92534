//! The proxy's configuration, and the directory that it lies in. It is written again when a server is added, and the
//! proxy takes it as it takes any file that has changed.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::issuer::{self, Issuer};
use super::{pages, shop};
use crate::keys::{RingKey, random_secret};

/// The pools, each by its mode; the shop of a pool is at the host of that name.
pub const MODES: [&str; 3] = ["sticky", "shared", "stateless"];

/// Where everything is.
#[derive(Clone, Copy)]
pub struct Places {
    pub https: u16,
    pub admin: u16,
    pub stage: u16,
    /// The loopback address of IPv6 can be listened on too.
    pub has_ipv6: bool,
}

impl Places {
    /// The address of the dashboard.
    pub fn dashboard(&self) -> String {
        format!("http://127.0.0.1:{}/", self.admin)
    }

    /// The address of the switches.
    pub fn stage(&self) -> String {
        format!("http://127.0.0.1:{}/", self.stage)
    }
}

/// The demo's own files; gone when it ends.
pub struct Directory(PathBuf);

impl Directory {
    /// Makes it, with all the keys that there have to be.
    pub fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("steadfast-demo-{:016x}", fastrand::u64(..)));
        // Made by us alone: what lies there already may be anybody's.
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let directory = Directory(path);
        std::fs::write(directory.0.join("demo.key"), RingKey::from_secret(random_secret()).to_line().as_bytes())?;
        Issuer::create(&directory.0)?;
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file that the proxy goes by.
    pub fn configuration(&self) -> PathBuf {
        self.0.join(issuer::CONFIG_FILE)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes the configuration with servers on these ports, `app-1` on the first; who reads it sees the old or the new one.
pub fn write(directory: &Path, places: &Places, ports: &[u16]) -> io::Result<()> {
    let (half, whole) = (directory.join("demo.toml.new"), directory.join(issuer::CONFIG_FILE));
    std::fs::write(&half, configuration(places, ports))?;
    std::fs::rename(&half, &whole)
}

fn configuration(places: &Places, ports: &[u16]) -> String {
    let Places { https, admin, .. } = places;
    let mut listeners = format!("[[listener]]\nname = \"https\"\naddress = \"127.0.0.1:{https}\"\n{TLS}");
    if places.has_ipv6 {
        listeners.push_str(&format!("[[listener]]\nname = \"https-v6\"\naddress = \"[::1]:{https}\"\n{TLS}"));
    }
    let servers = ports.iter().enumerate().map(|(at, port)| server(at + 1, *port)).collect::<String>();
    let [sticky, shared, stateless] = MODES.map(|mode| pool(mode, &servers));
    format!(
        "[process]\naccess_log = \"off\"\nmax_connections = 5000\nshutdown_grace = \"3s\"\n\
         [keys]\nring = [\"file:demo.key\"]\n[admin]\naddress = \"127.0.0.1:{admin}\"\n{listeners}\
         [[store]]\nname = \"main\"\n\
         [[route]]\n[route.respond]\nstatus = 200\nbody = '''\n{}'''\n\
         {sticky}[pool.sticky]\npin = \"hard\"\n{shared}[pool.shared]\nstore = \"main\"\n{}{stateless}{}{}{LOGIN}",
        index(places),
        payout("shared"),
        tokens(),
        payout("stateless"),
    )
}

/// What any other host is shown.
fn index(places: &Places) -> String {
    let (port, dashboard, stage) = (places.https.to_string(), places.dashboard(), places.stage());
    pages::fill(INDEX, &[("port", port.as_str()), ("dashboard", dashboard.as_str()), ("stage", stage.as_str())])
}

/// The one of this number, from one on. The twin need not find out how many workers it has.
fn server(number: usize, port: u16) -> String {
    let workers = shop::WORKERS;
    format!(
        "[[pool.server]]\nname = \"app-{number}\"\naddress = \"127.0.0.1:{port}\"\n\
         capacity = {workers}\n"
    )
}

/// A pool by the name of its mode, and the route from the host of that name.
fn pool(mode: &str, servers: &str) -> String {
    format!(
        "[[route]]\nhost = \"{mode}.localhost\"\npool = \"{mode}\"\n\
         [[pool]]\nname = \"{mode}\"\nmode = \"{mode}\"\ndebug_headers = true\n{servers}\
         [pool.health]\npath = \"/healthz\"\ninterval = \"500ms\"\nfall = 2\n\
         [pool.twin]\ndiscipline = \"fifo\"\n"
    )
}

/// A page for those who have shown a second factor lately.
fn payout(mode: &str) -> String {
    format!(
        "[[route]]\nhost = \"{mode}.localhost\"\npath = \"/payout\"\npool = \"{mode}\"\n\
         require = {{ acr = [\"mfa\"], max_age = \"10m\" }}\nlogin_url = \"/step-up\"\n"
    )
}

/// Whose tokens the stateless pool takes.
fn tokens() -> String {
    let (name, audience, jwks) = (issuer::NAME, issuer::AUDIENCE, issuer::JWKS_FILE);
    format!(
        "[pool.stateless]\ncarrier = \"cookie:token\"\n[[pool.stateless.issuer]]\nissuer = \"{name}\"\n\
         jwks = \"file:{jwks}\"\naudience = [\"{audience}\"]\nalgorithms = [\"EdDSA\"]\n"
    )
}

/// A token that is expired or revoked is refused wherever tokens are looked at. Whoever has such a one can log in again
/// because here nobody looks.
const LOGIN: &str = "[[route]]\nhost = \"stateless.localhost\"\npath = \"/login\"\npool = \"stateless\"\n\
                     session = \"off\"\n";
const INDEX: &str = include_str!("index.html");
const TLS: &str = "[listener.tls]\nself_signed = [\"localhost\", \"sticky.localhost\", \"shared.localhost\", \
                   \"stateless.localhost\", \"*.localhost\", \"127.0.0.1\", \"::1\"]\n";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const PLACES: Places = Places { https: 8443, admin: 9900, stage: 9901, has_ipv6: true };

    #[test]
    fn the_demos_configuration_is_fine_with_few_servers_and_with_all() {
        crate::tls::install_provider();
        let directory = Directory::create().unwrap();
        for ports in [&[9001, 9002, 9003][..], &[9001, 9002, 9003, 9004, 9005, 9006]] {
            write(directory.path(), &PLACES, ports).unwrap();
            let loaded = match crate::config::load(
                &directory.configuration(),
                crate::config::Hosts::Resolved(&HashSet::new()),
            ) {
                Ok(loaded) => loaded,
                Err(error) => panic!("{error}"),
            };
            assert!(loaded.warnings.problems.is_empty(), "{}", loaded.warnings.human(false));
            let configuration = loaded.configuration;
            assert!(configuration.process.watch, "a server that is added is noticed by this");
            assert_eq!(configuration.pools.len(), MODES.len());
            for pool in &configuration.pools {
                assert!(pool.servers.iter().all(|server| server.capacity == 4), "{}", pool.name);
                assert_eq!(pool.servers.len(), ports.len());
                assert!(pool.has_twin && pool.twin.discipline.is_some(), "{}", pool.name);
            }
        }
        assert!(!directory.path().join("demo.toml.new").exists());
    }

    #[test]
    fn the_index_leads_to_the_dashboard_the_switches_and_the_shops() {
        let index = index(&PLACES);
        for place in [
            "http://127.0.0.1:9900/",
            "http://127.0.0.1:9901/",
            "https://sticky.localhost:8443/",
            "https://shared.localhost:8443/",
            "https://stateless.localhost:8443/",
        ] {
            assert!(index.contains(&format!("href=\"{place}\"")), "{place}");
        }
        assert!(!index.contains("{{") && !index.contains("'''"), "{index}");
    }
}
