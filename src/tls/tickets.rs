//! TLS tickets that every proxy of a key ring can open.
//!
//! rustls' own rotating ticketer draws its keys per process, so behind two proxies every second resumption fails.
//! Here the keys are derived: HKDF(ring key, listener name | its client authorities and rule | 12-hour epoch). The
//! listener and its authorities are in there because a ticket stands for the handshake that made it: with one key for
//! all, a ticket from a listener that asks for no client certificate would resume on one that does.

use std::sync::Arc;

use aws_lc_rs::digest;
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;

use super::ClientAuth;
use crate::clock::Clock;
use crate::keys::{KeyRing, Sealer};

const EPOCH_SECONDS: u64 = 12 * 3_600;

pub(super) struct Ticketer {
    ring: Arc<KeyRing>,
    context: Vec<u8>,
    epochs: RwLock<Epochs>,
}

struct Epochs {
    current: u64,
    seals: Sealer,
    opens_too: Sealer,
}

impl Ticketer {
    pub(super) fn new(
        ring: Arc<KeyRing>,
        listener: &str,
        client_ca: &[CertificateDer<'_>],
        client_auth: ClientAuth,
    ) -> Self {
        let mut authorities = digest::Context::new(&digest::SHA256);
        for authority in client_ca {
            authorities.update(authority);
        }
        let mut context = authorities.finish().as_ref().to_vec();
        context.extend_from_slice(client_auth.as_str().as_bytes());
        context.push(0);
        context.extend_from_slice(listener.as_bytes());
        let epochs = RwLock::new(epochs(&ring, &context, present_epoch()));
        Ticketer { ring, context, epochs }
    }

    fn turn_over(&self) {
        let present = present_epoch();
        if self.epochs.read().current != present {
            *self.epochs.write() = epochs(&self.ring, &self.context, present);
        }
    }
}

fn present_epoch() -> u64 {
    Clock::wall(Clock::now()).seconds() / EPOCH_SECONDS
}

fn epochs(ring: &KeyRing, context: &[u8], current: u64) -> Epochs {
    let sealer = |epoch: u64| ring.sealer("steadfast ticket v1", &[&epoch.to_be_bytes(), context].concat());
    Epochs { current, seals: sealer(current), opens_too: sealer(current.saturating_sub(1)) }
}

impl std::fmt::Debug for Ticketer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Ticketer")
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// Seconds: a ticket opens for at least one whole epoch.
    fn lifetime(&self) -> u32 {
        EPOCH_SECONDS as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.turn_over();
        self.epochs.read().seals.seal_vec(plain)
    }

    fn decrypt(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        self.turn_over();
        let epochs = self.epochs.read();
        let open = |sealer: &Sealer| sealer.open(&mut sealed.to_vec()).ok().map(|(_, plain)| plain.to_vec());
        open(&epochs.seals).or_else(|| open(&epochs.opens_too))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RingKey;

    fn ring(byte: u8) -> Arc<KeyRing> {
        Arc::new(KeyRing::new(vec![RingKey::from_secret([byte; 32])]))
    }

    #[test]
    fn two_proxies_of_one_ring_resume_each_others_tickets_and_other_listeners_do_not() {
        let ticket = Ticketer::new(ring(1), "https", &[], ClientAuth::Optional).encrypt(b"state").unwrap();
        assert_eq!(
            Ticketer::new(ring(1), "https", &[], ClientAuth::Optional).decrypt(&ticket).as_deref(),
            Some(b"state".as_slice())
        );
        assert_eq!(Ticketer::new(ring(2), "https", &[], ClientAuth::Optional).decrypt(&ticket), None);
        assert_eq!(Ticketer::new(ring(1), "internal", &[], ClientAuth::Optional).decrypt(&ticket), None);
        let authority = CertificateDer::from(vec![1, 2, 3]);
        assert_eq!(Ticketer::new(ring(1), "https", &[authority], ClientAuth::Optional).decrypt(&ticket), None);
        // Else who came without a certificate while that was allowed would stay in once it no longer is.
        assert_eq!(Ticketer::new(ring(1), "https", &[], ClientAuth::Required).decrypt(&ticket), None);
    }

    #[test]
    fn the_previous_epoch_still_opens_and_the_one_before_does_not() {
        let ring = ring(1);
        let seal = |epoch| epochs(&ring, b"x", epoch).seals.seal_vec(b"state").unwrap();
        let now = epochs(&ring, b"x", 10);
        assert!(now.opens_too.open(&mut seal(9)).is_ok());
        assert!(now.opens_too.open(&mut seal(8)).is_err() && now.seals.open(&mut seal(8)).is_err());
    }
}
