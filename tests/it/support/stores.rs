//! Stores and a realm for tests that speak the session protocol without a proxy.

use std::sync::Arc;
use std::time::Duration;

use steadfast::clock::Clock;
use steadfast::keys::{KeyRing, RingKey};
use steadfast::metrics::Metrics;
use steadfast::session::{OnReuse, Realm, Rules};
use steadfast::store::{BreakerSettings, KindSettings, Settings, Store};

pub fn open(kind: KindSettings) -> Arc<Store> {
    Clock::anchor();
    let settings = Settings {
        name: "main".into(),
        kind,
        near_cache: Duration::ZERO,
        breaker: BreakerSettings { failures: 5, within: Duration::from_secs(1), probe: Duration::from_millis(500) },
        most_bytes: 65_536,
    };
    Store::open(settings, Metrics::new(2).store("main")).unwrap_or_else(|error| panic!("{error}"))
}

pub fn realm() -> Realm {
    let rules = Rules {
        idle: Duration::from_secs(1_800),
        absolute: Duration::from_secs(28_800),
        anonymous: Duration::from_secs(86_400),
        renew: Duration::from_secs(900),
        grace: Duration::from_secs(600),
        on_reuse: OnReuse::Kill,
        carry: None,
        most_bytes: 65_536,
    };
    Realm::new("shop", &KeyRing::new(vec![RingKey::from_secret([3; 32])]), rules)
}
