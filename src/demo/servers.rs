//! The app servers: processes of their own (this binary again), so that one can be killed for real. Who is killed is
//! started again after a while, with an empty memory and at full speed.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use super::configuration::{self, Places};
use super::{end, issuer, own_process, say, shop};
use crate::clock::{Clock, Moment};

/// How many there are at first.
pub const FIRST: usize = 3;
/// And how many there may be.
pub const MOST: usize = 6;
/// How long a killed server stays away.
pub const AWAY: Duration = Duration::from_secs(10);
/// What is left of the speed of a server that is slowed down.
const SLOW: f64 = 0.25;
const FULL: f64 = 1.0;
/// For all of them together to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("Say which server: server=app-1.")]
    Unnamed,
    #[error("There is no server {0}.")]
    Unknown(String),
    #[error("{name} is away; it is back in {back_in} s.")]
    Away { name: String, back_in: u64 },
    #[error("There are {} servers, and there can be no more.", MOST)]
    Full,
    #[error("That did not work: {0}.")]
    Failed(#[from] io::Error),
}

/// All of them, and the file by which the proxy knows them.
pub struct Servers {
    servers: Vec<Server>,
    directory: PathBuf,
    places: Places,
}

struct Server {
    name: String,
    port: u16,
    process: Process,
    /// 1: full speed.
    speed: f64,
}

enum Process {
    Runs(Child),
    Away { until: Moment },
}

/// What is to be seen of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    /// None while it is away.
    pub pid: Option<u32>,
    pub state: &'static str,
    /// The state in words.
    pub says: String,
}

impl Servers {
    /// Starts the first ones, writes the configuration, and waits until they listen: nobody is to meet a proxy that has
    /// no servers.
    pub fn start(directory: &Path, places: Places) -> io::Result<Self> {
        let mut all = Servers { servers: Vec::new(), directory: directory.to_owned(), places };
        for port in free_ports(FIRST)? {
            all.start_one(port)?;
        }
        all.write_configuration()?;
        all.wait_until_they_listen();
        Ok(all)
    }

    fn start_one(&mut self, port: u16) -> io::Result<()> {
        let name = format!("app-{}", self.servers.len() + 1);
        let process = Process::Runs(launch(&name, port, &self.directory)?);
        self.servers.push(Server { name, port, process, speed: FULL });
        Ok(())
    }

    fn write_configuration(&self) -> io::Result<()> {
        configuration::write(&self.directory, &self.places, &self.ports())
    }

    fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(|server| server.port).collect()
    }

    /// One that does not is the proxy's business: it has probes.
    fn wait_until_they_listen(&self) {
        let deadline = Clock::now() + PATIENCE;
        for port in self.ports() {
            while TcpStream::connect(("127.0.0.1", port)).is_err() && Clock::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// How they are.
    pub fn seen(&self) -> Vec<Seen> {
        let now = Clock::now();
        self.servers.iter().map(|server| server.seen(now)).collect()
    }

    /// Starts again whoever has ended, when it is time.
    pub fn look_after(&mut self) {
        let now = Clock::now();
        let directory = &self.directory;
        self.servers.iter_mut().for_each(|server| server.look_after(now, directory));
    }

    pub fn slow_down(&mut self, name: &str) -> Result<String, Refusal> {
        self.present(name)?.work_at(SLOW)?;
        Ok(format!("{name} works at a quarter of its speed."))
    }

    pub fn speed_up(&mut self, name: &str) -> Result<String, Refusal> {
        self.present(name)?.work_at(FULL)?;
        Ok(format!("{name} works at full speed."))
    }

    /// kill -9.
    pub fn kill(&mut self, name: &str) -> Result<String, Refusal> {
        self.present(name)?.kill()?;
        Ok(format!("{name} was killed; it is started again in {} seconds.", AWAY.as_secs()))
    }

    /// One more; the proxy finds it in its file.
    pub fn add(&mut self) -> Result<String, Refusal> {
        if self.servers.len() >= MOST {
            return Err(Refusal::Full);
        }
        // Of one that is away the port looks free; but among so many one is new.
        let known = self.ports();
        let new = free_ports(MOST)?.into_iter().find(|port| !known.contains(port));
        self.start_one(new.ok_or(Refusal::Full)?)?;
        if let Err(error) = self.write_configuration() {
            // Nobody would be sent to it.
            self.servers.pop();
            return Err(error.into());
        }
        let added = self.servers.last().map_or("", |server| server.name.as_str());
        Ok(format!("{added} is started; the proxy takes it into all three pools in a second or two."))
    }

    /// One of this name that runs.
    fn present(&mut self, name: &str) -> Result<&mut Server, Refusal> {
        if name.is_empty() {
            return Err(Refusal::Unnamed);
        }
        let found = self.servers.iter_mut().find(|server| server.name == name);
        let server = found.ok_or_else(|| Refusal::Unknown(name.to_owned()))?;
        match server.back_in(Clock::now()) {
            Some(back_in) => Err(Refusal::Away { name: name.to_owned(), back_in }),
            None => Ok(server),
        }
    }
}

impl Server {
    fn seen(&self, now: Moment) -> Seen {
        let (pid, state, says) = match &self.process {
            Process::Runs(child) if self.speed < FULL => {
                (Some(child.id()), "slow", "slow: a quarter of its speed".to_owned())
            }
            Process::Runs(child) => (Some(child.id()), "running", "running".to_owned()),
            Process::Away { .. } => {
                (None, "away", format!("away, back in {} s", self.back_in(now).unwrap_or_default()))
            }
        };
        Seen { name: self.name.clone(), pid, state, says }
    }

    /// In how many seconds it is started again; none where it runs.
    fn back_in(&self, now: Moment) -> Option<u64> {
        match &self.process {
            Process::Runs(_) => None,
            Process::Away { until } => Some(until.since(now).as_secs_f64().ceil() as u64),
        }
    }

    fn work_at(&mut self, speed: f64) -> io::Result<()> {
        let Process::Runs(child) = &mut self.process else { return Ok(()) };
        if let Some(ear) = &mut child.stdin {
            ear.write_all(format!("{}{speed}\n", shop::SPEED).as_bytes())?;
        }
        self.speed = speed;
        Ok(())
    }

    fn kill(&mut self) -> io::Result<()> {
        let Process::Runs(child) = &mut self.process else { return Ok(()) };
        child.kill()?;
        let status = child.wait()?;
        self.has_ended(status, Clock::now());
        Ok(())
    }

    fn has_ended(&mut self, status: ExitStatus, now: Moment) {
        let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
        say(&format!("{} has ended ({how}); it is started again in {} seconds", self.name, AWAY.as_secs()));
        self.process = Process::Away { until: now + AWAY };
    }

    fn look_after(&mut self, now: Moment, directory: &Path) {
        match &mut self.process {
            Process::Runs(child) => {
                if let Ok(Some(status)) = child.try_wait() {
                    self.has_ended(status, now);
                }
            }
            Process::Away { until } if *until <= now => self.start_again(now, directory),
            Process::Away { .. } => {}
        }
    }

    fn start_again(&mut self, now: Moment, directory: &Path) {
        match launch(&self.name, self.port, directory) {
            Ok(child) => {
                say(&format!("{} is back as process {}", self.name, child.id()));
                self.process = Process::Runs(child);
                self.speed = FULL;
            }
            Err(error) => {
                say(&format!("{} cannot be started again: {error}", self.name));
                self.process = Process::Away { until: now + AWAY };
            }
        }
    }
}

/// No process outlives the demo.
impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Runs(child) = &mut self.process {
            end(child);
        }
    }
}

/// Ports that nobody listens on; between here and their use somebody might, and then the start fails with a word.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let bound: io::Result<Vec<TcpListener>> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    bound?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn launch(name: &str, port: u16, directory: &Path) -> io::Result<Child> {
    let mut command = own_process(&["demo-server", "--name", name, "--port", &port.to_string()])?;
    command.env(issuer::DIRECTORY, directory).stdin(Stdio::piped()).spawn()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PLACES: Places = Places { https: 8443, admin: 9900, stage: 9901, has_ipv6: false };

    /// Servers of this name whose processes only read what they are told.
    fn servers(count: usize) -> (tempfile::TempDir, Servers) {
        let directory = tempfile::tempdir().unwrap();
        let servers = (1..=count).map(|number| {
            let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            let port = 9_000 + u16::try_from(number).unwrap();
            Server { name: format!("app-{number}"), port, process: Process::Runs(child), speed: FULL }
        });
        let servers = Servers { servers: servers.collect(), directory: directory.path().to_owned(), places: PLACES };
        (directory, servers)
    }

    fn states(servers: &Servers) -> Vec<&'static str> {
        servers.seen().iter().map(|seen| seen.state).collect()
    }

    #[test]
    fn a_server_is_slowed_down_and_killed_and_what_is_away_can_be_neither() {
        let (_directory, mut servers) = servers(2);
        assert_eq!(states(&servers), ["running", "running"]);
        assert!(servers.slow_down("app-1").unwrap().contains("a quarter"));
        assert_eq!(states(&servers), ["slow", "running"]);
        servers.speed_up("app-1").unwrap();
        assert_eq!(states(&servers), ["running", "running"]);
        servers.kill("app-2").unwrap();
        let gone = &servers.seen()[1];
        assert_eq!((gone.pid, gone.state), (None, "away"));
        assert!(gone.says.starts_with("away, back in "), "{}", gone.says);
        for refused in [servers.kill("app-2"), servers.slow_down("app-2"), servers.speed_up("app-2")] {
            assert!(matches!(&refused, Err(Refusal::Away { back_in: ..=10, .. })), "{refused:?}");
        }
        assert_eq!(servers.kill("app-3").unwrap_err().to_string(), "There is no server app-3.");
        assert!(matches!(servers.kill(""), Err(Refusal::Unnamed)));
    }

    #[test]
    fn who_ends_by_itself_is_noticed() {
        let (_directory, mut servers) = servers(1);
        if let Process::Runs(child) = &mut servers.servers[0].process {
            // The end of its input is the end of this one.
            drop(child.stdin.take());
        }
        let deadline = Clock::now() + Duration::from_secs(30);
        while states(&servers) != ["away"] {
            assert!(Clock::now() < deadline, "it is never noticed");
            servers.look_after();
        }
    }

    #[test]
    fn there_are_no_more_than_so_many() {
        let (_directory, mut servers) = servers(MOST);
        let refused = servers.add().unwrap_err().to_string();
        assert_eq!(refused, "There are 6 servers, and there can be no more.");
        assert_eq!(servers.seen().len(), MOST);
    }
}
