//! Open-loop users: what comes does not wait for what is slow.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::origins::{FIRST, SERVICE};
use crate::workload::Arrival;

/// All who ask one proxy, each with a cookie.
pub struct Users {
    port: u16,
    cookies: Mutex<HashMap<u32, String>>,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    /// When each was due, and how long it took from then to the end of its answer.
    latencies: Mutex<Vec<(Duration, Duration)>>,
    failed: AtomicU64,
}

impl Users {
    pub fn of(port: u16) -> Arc<Self> {
        Arc::new(Users {
            port,
            cookies: Mutex::default(),
            idle: Mutex::default(),
            latencies: Mutex::default(),
            failed: AtomicU64::new(0),
        })
    }

    /// Sends what arrives when it arrives; gives back what is still under way at the end.
    pub async fn send(self: &Arc<Self>, arrivals: &[Arrival], began: Instant) -> JoinSet<()> {
        let mut asked = JoinSet::new();
        for arrival in arrivals {
            tokio::time::sleep_until((began + arrival.at).into()).await;
            let (users, session, service) = (Arc::clone(self), arrival.session, arrival.service);
            let due = arrival.at;
            asked.spawn(async move {
                match users.ask(session, service).await {
                    Ok(()) => users.latencies.lock().unwrap().push((due, (began + due).elapsed())),
                    Err(why) if users.failed.fetch_add(1, Ordering::Relaxed) == 0 => {
                        println!("the first that failed: {why}")
                    }
                    Err(_) => {}
                }
            });
        }
        asked
    }

    async fn ask(&self, session: u32, service: Duration) -> Result<(), String> {
        let kept = self.idle.lock().unwrap().pop().filter(|sender| !sender.is_closed());
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await.map_err(|error| error.to_string())?,
        };
        // As from a proxy that does TLS before this one: sessions in the proxy are for https only.
        let request = Request::get("/").header(header::HOST, "bench").header("x-forwarded-proto", "https");
        let request = request.header(SERVICE, service.as_micros().to_string());
        let cookie = self.cookies.lock().unwrap().get(&session).cloned();
        let request = match cookie {
            Some(cookie) => request.header(header::COOKIE, cookie),
            None => request.header(FIRST, "1"),
        };
        let response =
            sender.send_request(request.body(Empty::new()).unwrap()).await.map_err(|error| error.to_string())?;
        if response.status() != 200 {
            return Err(response.status().to_string());
        }
        if let Some(cookie) = response.headers().get(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
            self.cookies.lock().unwrap().insert(session, pair);
        }
        response.into_body().collect().await.map_err(|error| error.to_string())?;
        self.idle.lock().unwrap().push(sender);
        Ok(())
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// The latencies that these shares of those that were due in this time do not exceed.
    pub fn quantiles<const N: usize>(&self, due: &Range<Duration>, shares: [f64; N]) -> [Duration; N] {
        let latencies = self.latencies.lock().unwrap();
        let mut latencies: Vec<Duration> =
            latencies.iter().filter(|(at, _)| due.contains(at)).map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        shares.map(|share| latencies[((latencies.len() - 1) as f64 * share) as usize])
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}
