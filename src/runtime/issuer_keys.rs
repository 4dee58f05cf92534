//! The keys of token issuers, as they are known now.
//!
//! They are fetched by the control thread and swapped, so that workers only look: every ten minutes, and when a token names
//! a key that nobody knows, then once in half a minute, whoever asks. The last good ones count for a day.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;

use crate::clock::{Clock, Moment};
use crate::jwks::{self, FetchError};
use crate::stateless::{IssuerSettings, KeySource, Keys};

/// Between two fetches when all is well, less up to a tenth, so that proxies do not all come at once.
const REFRESH: Duration = Duration::from_secs(600);
/// Between two fetches for keys that are not known.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two fetches while none succeeds.
const RETRY: Duration = Duration::from_secs(5);
/// How long the last good key set counts.
const LAST_GOOD: Duration = Duration::from_secs(24 * 3600);

/// The keys of one issuer, as they are known now.
pub struct IssuerKeys {
    settings: IssuerSettings,
    /// Whose certificates an https address may show; none: the system's authorities.
    authorities: Vec<CertificateDer<'static>>,
    tls: Option<Arc<ClientConfig>>,
    current: ArcSwapOption<Keys>,
    /// Counts the key sets: what was verified under another one is verified again.
    epoch: AtomicU64,
    /// Somebody has shown a token of a key that is not known.
    is_wanted: AtomicBool,
    /// They are being fetched.
    is_under_way: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    tried: Option<Moment>,
    succeeded: Option<Moment>,
    /// The text that the current keys were read from.
    text: Bytes,
    /// How much sooner than others this proxy comes.
    early: Duration,
}

impl IssuerKeys {
    /// Keys of these settings: a secret counts at once, key sets once they were fetched.
    pub fn new(
        settings: IssuerSettings,
        authorities: Vec<CertificateDer<'static>>,
        tls: Option<Arc<ClientConfig>>,
        random: &mut fastrand::Rng,
    ) -> Arc<Self> {
        let current = match &settings.keys {
            KeySource::Secret(secret) => Some(Arc::new(Keys::secret(secret))),
            KeySource::Url(_) | KeySource::File(_) => None,
        };
        let early = REFRESH.mul_f64(random.f64() / 10.0);
        Arc::new(IssuerKeys {
            settings,
            authorities,
            tls,
            current: ArcSwapOption::new(current),
            epoch: AtomicU64::new(1),
            is_wanted: AtomicBool::new(false),
            is_under_way: AtomicBool::new(false),
            times: Mutex::new(Times { early, ..Times::default() }),
        })
    }

    /// Whether keys for these settings are these. For whom the issuer's tokens are changes nothing about them.
    pub fn are_for(&self, settings: &IssuerSettings, authorities: &[CertificateDer<'static>]) -> bool {
        let same = self.settings.issuer == settings.issuer && self.settings.keys == settings.keys;
        same && self.settings.algorithms == settings.algorithms && self.authorities == authorities
    }

    /// Begins with what others of the same source have: keys do not go because more algorithms are taken.
    pub fn begin_with(&self, other: &IssuerKeys) {
        let is_same_source = self.settings.keys == other.settings.keys && self.authorities == other.authorities;
        let (text, succeeded) = {
            let times = other.times.lock();
            (times.text.clone(), times.succeeded)
        };
        if is_same_source && succeeded.is_some() && self.take(text).is_ok() {
            self.times.lock().succeeded = succeeded;
        }
    }

    /// The keys, if there are any.
    pub fn current(&self) -> Option<Arc<Keys>> {
        self.current.load_full()
    }

    /// Changes with every key set.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A token names a key that is not known, or there are no keys: whether newer ones might have it. That they do not is
    /// only known once they were fetched after this was asked, or a moment before.
    pub fn may_be_newer(&self, now: Moment) -> bool {
        if matches!(self.settings.keys, KeySource::Secret(_)) {
            return false;
        }
        let is_old = self.times.lock().succeeded.is_none_or(|succeeded| now.since(succeeded) >= AGAIN);
        if is_old {
            self.is_wanted.store(true, Ordering::Relaxed);
        }
        is_old
    }

    /// Whether it is time to fetch them.
    fn is_due(&self, now: Moment) -> bool {
        if matches!(self.settings.keys, KeySource::Secret(_)) {
            return false;
        }
        let times = self.times.lock();
        let since = |at: Option<Moment>| at.map(|at| now.since(at));
        let Some(tried) = since(times.tried) else { return true };
        let failed = times.succeeded.is_none_or(|succeeded| times.tried.is_some_and(|tried| tried > succeeded));
        let pause = if failed { RETRY } else { REFRESH.saturating_sub(times.early) };
        tried >= pause || (tried >= AGAIN && self.is_wanted.load(Ordering::Relaxed))
    }

    /// Fetches the keys if it is time; to be called about once a second.
    pub async fn refresh(&self) {
        let now = Clock::now();
        if !self.is_due(now) || self.is_under_way.swap(true, Ordering::Relaxed) {
            return;
        }
        self.times.lock().tried = Some(now);
        self.is_wanted.store(false, Ordering::Relaxed);
        let issuer = &self.settings.issuer;
        match self.fetch().await.map_err(|error| error.to_string()).and_then(|text| self.take(text)) {
            Ok(true) => tracing::info!(%issuer, "the issuer's keys have changed"),
            Ok(false) => {}
            Err(why) => {
                let has_some = self.current.load().is_some();
                let then = if has_some { "the last good ones stay" } else { "its tokens cannot be checked" };
                tracing::warn!(%issuer, %why, "the issuer's keys cannot be fetched; {then}");
                self.forget_if_old(Clock::now());
            }
        }
        self.is_under_way.store(false, Ordering::Relaxed);
    }

    async fn fetch(&self) -> Result<Bytes, FetchError> {
        match (&self.settings.keys, &self.tls) {
            (KeySource::Url(url), Some(tls)) => jwks::fetch(url, Arc::clone(tls)).await,
            (KeySource::File(path), _) => jwks::read(path),
            _ => Err(FetchError::Url),
        }
    }

    /// The keys of a file, read at once: what is wrong with them is to be known before they count.
    pub fn read_file(&self) -> Result<Option<Bytes>, String> {
        let KeySource::File(path) = &self.settings.keys else { return Ok(None) };
        let wrong = |why: String| format!("{}: {why}", path.display());
        let text = jwks::read(path).map_err(|error| wrong(error.to_string()))?;
        Keys::parse(&text, &self.settings.algorithms).map_err(|error| wrong(error.to_string()))?;
        Ok(Some(text))
    }

    /// Puts a key set in force; says whether it is another one.
    pub fn take(&self, text: Bytes) -> Result<bool, String> {
        let now = Clock::now();
        let mut times = self.times.lock();
        if times.text == text && self.current.load().is_some() {
            (times.succeeded, times.tried) = (Some(now), Some(now));
            return Ok(false);
        }
        let keys = Keys::parse(&text, &self.settings.algorithms).map_err(|error| error.to_string())?;
        let issuer = &self.settings.issuer;
        for (kid, why) in keys.skipped() {
            tracing::info!(%issuer, kid = kid.as_deref().unwrap_or("-"), ?why, "a key of the issuer is not used");
        }
        if keys.is_empty() {
            tracing::warn!(%issuer, "the issuer shows no key that can be used: none of its tokens counts");
        }
        (times.succeeded, times.tried, times.text) = (Some(now), Some(now), text);
        self.current.store(Some(Arc::new(keys)));
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    fn forget_if_old(&self, now: Moment) {
        let succeeded = self.times.lock().succeeded;
        if succeeded.is_some_and(|at| now.since(at) > LAST_GOOD) && self.current.swap(None).is_some() {
            self.epoch.fetch_add(1, Ordering::Release);
            tracing::error!(issuer = %self.settings.issuer, "its keys are older than a day: its tokens count no more");
        }
    }
}
