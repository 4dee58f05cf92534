//! Real redis-servers on ports of their own: one that can be stopped and started again with what it had, three with
//! sentinels, and a cluster.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use steadfast::store::RedisSettings;

use super::eventually;

pub struct Redis {
    pub port: u16,
    child: Option<Child>,
    directory: tempfile::TempDir,
    more: Vec<String>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments than the usual.
    pub fn start_with(more: &[&str]) -> Self {
        let port = port();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut redis = Redis { port, child: None, directory, more };
        redis.start_again();
        redis
    }

    /// It keeps every change in a file (`appendfsync always`).
    pub fn start_again(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--dir"])
            .arg(self.directory.path())
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server is installed: see the README's test command"));
        let port = self.port;
        eventually("redis answers, and has read its file", || cli(port, &["ping"]).contains("PONG"));
    }

    /// kill -9.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What redis-cli prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
    }

    /// Every byte that it keeps: its file, with all that was ever written.
    pub fn dump(&self) -> Vec<u8> {
        fn read(directory: &Path, into: &mut Vec<u8>) {
            for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    read(&entry.path(), into);
                } else {
                    into.extend(std::fs::read(entry.path()).unwrap_or_default());
                }
            }
        }
        let mut all = Vec::new();
        read(self.directory.path(), &mut all);
        all
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What redis-cli prints when it is connected to a port.
pub fn cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output();
    String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
}

/// A port that nobody else is given. It and the one 10,000 above, which is for talk among a cluster's nodes, are below those
/// that the system gives to whoever asks for any.
pub fn port() -> u16 {
    const PORTS: u16 = 2_700;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..PORTS)));
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let next = || 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
    let mut ports = std::iter::repeat_with(next).take(PORTS.into());
    ports.find(|port| free(*port) && free(port + 10_000)).expect("a port is free")
}

/// A process that ends when it is dropped, or before.
struct Server {
    port: u16,
    child: Child,
}

impl Server {
    fn start(port: u16, arguments: &[&str]) -> Self {
        let child = Command::new("redis-server")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Server { port, child: child.expect("redis-server is installed: see the README's test command") }
    }

    /// A node that keeps nothing when it ends, and does not wait for others before it copies itself to a replica.
    fn node(directory: &Path, more: &[&str]) -> Self {
        let port = port();
        let directory = directory.join(port.to_string());
        std::fs::create_dir(&directory).unwrap();
        let (text, directory) = (port.to_string(), directory.to_str().unwrap());
        let usual = ["--port", &text, "--bind", "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "no"];
        let node = Self::start(port, &[&usual[..], &["--repl-diskless-sync-delay", "0"], more].concat());
        eventually("a node answers", || cli(port, &["ping"]).contains("PONG"));
        node
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is a child of ours");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Also when it was stopped or has ended: then nothing else has its number before it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A master with two replicas, and three sentinels that see to it that there is one.
pub struct Sentinels {
    nodes: Vec<Server>,
    sentinels: Vec<Server>,
    _directory: tempfile::TempDir,
}

impl Sentinels {
    /// The replicas are in sync, and the sentinels know all.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut nodes = vec![Server::node(directory.path(), &[])];
        let master = nodes[0].port.to_string();
        for _ in 0..2 {
            nodes.push(Server::node(directory.path(), &["--replicaof", "127.0.0.1", &master]));
        }
        let sentinels = (0..3).map(|_| Self::sentinel(directory.path(), &master)).collect();
        let all = Sentinels { nodes, sentinels, _directory: directory };
        let port = all.nodes[0].port;
        eventually("both replicas are in sync", || cli(port, &["info", "replication"]).matches("online").count() == 2);
        for sentinel in &all.sentinels {
            eventually("a sentinel knows all", || {
                let told = cli(sentinel.port, &["sentinel", "master", "main"]);
                let words: Vec<&str> = told.lines().collect();
                let counts = |name: &str| words.windows(2).any(|pair| pair == [name, "2"]);
                counts("num-slaves") && counts("num-other-sentinels")
            });
        }
        all
    }

    fn sentinel(directory: &Path, master: &str) -> Server {
        let port = port();
        let file = directory.join(format!("{port}.conf"));
        // A machine that is busy with other tests is not to be taken for a dead one.
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds main 3000\nsentinel failover-timeout main 5000\n\
             sentinel parallel-syncs main 2\n",
            directory.display()
        );
        std::fs::write(&file, text).unwrap();
        Server::start(port, &[file.to_str().unwrap(), "--sentinel"])
    }

    /// How a store finds the master: with the patience of a busy machine.
    pub fn settings(&self) -> RedisSettings {
        let nodes: Vec<String> = self.sentinels.iter().map(address).collect();
        patient(RedisSettings::sentinel("main", &nodes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap())
    }

    /// The port of the master, if all sentinels have the same one.
    pub fn master(&self) -> Option<u16> {
        let told = |sentinel: &Server| {
            let told = cli(sentinel.port, &["sentinel", "get-master-addr-by-name", "main"]);
            told.lines().nth(1).and_then(|port| port.parse().ok())
        };
        let mut told = self.sentinels.iter().map(told);
        let first = told.next()?;
        if told.all(|port| port == first) { first } else { None }
    }

    /// kill -9.
    pub fn kill(&self, port: u16) {
        server(&self.nodes, port).signal(Signal::KILL);
    }

    /// It does nothing, and does not know that it does not, until it is woken.
    pub fn pause(&self, port: u16) {
        server(&self.nodes, port).signal(Signal::STOP);
    }

    pub fn wake(&self, port: u16) {
        server(&self.nodes, port).signal(Signal::CONT);
    }
}

/// Three primaries with a replica each.
pub struct Cluster {
    nodes: Vec<Server>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// All slots are served, and the replicas are in sync.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let more = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"];
        let nodes: Vec<Server> = (0..6).map(|_| Server::node(directory.path(), &more)).collect();
        let addresses: Vec<String> = nodes.iter().map(address).collect();
        let output = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let cluster = Cluster { nodes, _directory: directory };
        for node in &cluster.nodes {
            eventually("a node knows the cluster", || {
                let info = cli(node.port, &["cluster", "info"]);
                ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:6"]
                    .iter()
                    .all(|it| info.contains(it))
            });
            // Both ends of a replication know whether it works.
            eventually("a replica is in sync", || {
                let info = cli(node.port, &["info", "replication"]);
                info.contains("state=online") || info.contains("master_link_status:up")
            });
        }
        eventually("there are three primaries", || cluster.primaries().len() == 3);
        cluster
    }

    /// How a store finds the nodes: with the patience of a busy machine.
    pub fn settings(&self) -> RedisSettings {
        let nodes: Vec<String> = self.nodes.iter().map(address).collect();
        patient(RedisSettings::cluster(&nodes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap())
    }

    /// The ports of the primaries that have slots, as a node says that was not killed.
    pub fn primaries(&self) -> Vec<u16> {
        let told = self.nodes.iter().map(|node| cli(node.port, &["cluster", "nodes"])).find(|told| !told.is_empty());
        let told = told.expect("a node answers");
        let primaries = told.lines().filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let (address, flags) = (words.get(1)?, words.get(2)?);
            let is_primary = flags.contains("master") && !flags.contains("fail") && words.len() > 8;
            let port = address.split_once('@')?.0.rsplit_once(':')?.1;
            if is_primary { port.parse().ok() } else { None }
        });
        primaries.collect()
    }

    /// The primary that keeps the most records.
    pub fn busiest(&self) -> u16 {
        let records = |port: &u16| cli(*port, &["dbsize"]).trim().parse::<usize>().unwrap_or(0);
        self.primaries().into_iter().max_by_key(records).expect("there are primaries")
    }

    /// kill -9.
    pub fn kill(&self, port: u16) {
        server(&self.nodes, port).signal(Signal::KILL);
    }

    /// How often nodes have refused something with a word.
    pub fn said(&self, word: &str) -> u64 {
        let name = format!("errorstat_{word}:count=");
        let count = |line: &str| line.strip_prefix(&name).and_then(|count| count.trim().parse::<u64>().ok());
        let said = |node: &Server| cli(node.port, &["info", "errorstats"]).lines().find_map(count).unwrap_or(0);
        self.nodes.iter().map(said).sum()
    }

    /// The slot of a tag.
    pub fn slot(&self, tag: u16) -> String {
        cli(self.nodes[0].port, &["cluster", "keyslot", &tag.to_string()]).trim().to_owned()
    }

    /// Moves a slot from the primary that has it to another, as redis-cli does it, and with all that is in it. When
    /// all of that is gone and the new owner is not known yet, `meanwhile` is called.
    pub fn move_slot(&self, slot: &str, meanwhile: impl FnOnce()) {
        let primaries = self.primaries();
        let ids: Vec<String> =
            primaries.iter().map(|port| cli(*port, &["cluster", "myid"]).trim().to_owned()).collect();
        let from = primaries.iter().position(|port| serves(*port, slot)).expect("somebody has the slot");
        let to = (from + 1) % primaries.len();
        let set = |port: u16, words: &[&str]| {
            let said = cli(port, &[&["cluster", "setslot", slot][..], words].concat());
            assert_eq!(said.trim(), "OK", "{slot}: {words:?}");
        };
        set(primaries[to], &["importing", &ids[from]]);
        set(primaries[from], &["migrating", &ids[to]]);
        loop {
            let keys = cli(primaries[from], &["cluster", "getkeysinslot", slot, "10"]);
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            let target = primaries[to].to_string();
            let migrate = ["migrate", "127.0.0.1", &target, "", "0", "20000", "keys"];
            let said = cli(primaries[from], &[&migrate[..], &keys].concat());
            assert!(matches!(said.trim(), "OK" | "NOKEY"), "{slot}: {said}");
        }
        meanwhile();
        // The new owner first: nobody is sent back meanwhile.
        set(primaries[to], &["node", &ids[to]]);
        set(primaries[from], &["node", &ids[to]]);
    }
}

/// Whether a node has a slot, as it says itself.
fn serves(port: u16, slot: &str) -> bool {
    let id = cli(port, &["cluster", "myid"]).trim().to_owned();
    let told = cli(port, &["cluster", "nodes"]);
    let slot: u16 = slot.parse().unwrap();
    told.lines().filter(|line| line.starts_with(&id)).flat_map(|line| line.split(' ').skip(8)).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = (first.parse::<u16>(), last.parse::<u16>());
        matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&slot))
    })
}

fn address(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

fn server(servers: &[Server], port: u16) -> &Server {
    servers.iter().find(|server| server.port == port).expect("it is one of these")
}

fn patient(mut settings: RedisSettings) -> RedisSettings {
    settings.timeout = Duration::from_secs(20);
    settings.connect = Duration::from_secs(20);
    settings
}
