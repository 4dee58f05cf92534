//! Tokens that were found good: a signature is checked once, not at every request.
//!
//! What is remembered is the hash of the whole token, so that one changed byte is another token, and how long looking
//! it up takes tells nothing of it. Each worker has a cache of its own for each verifier. A token is forgotten when it
//! expires, and when its issuer's keys are others: a key that was taken out of the set stops counting at once. Whether
//! it was revoked is asked each time, of those who know.

use std::rc::Rc;

use aws_lc_rs::digest;
use foldhash::HashMap;

use super::claims::Verified;

/// The most that are remembered.
const MOST: usize = 4_096;
/// In two generations: a full young one becomes the old one, and the old one is forgotten. What is used is kept.
const HALF: usize = MOST / 2;

/// The SHA-256 of a token.
pub type TokenHash = [u8; digest::SHA256_OUTPUT_LEN];

/// The name of a token in a cache.
pub fn token_hash(token: &[u8]) -> TokenHash {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
    hash
}

/// Good tokens of one verifier, for one worker.
#[derive(Debug, Default)]
pub struct Cache {
    young: HashMap<TokenHash, Entry>,
    old: HashMap<TokenHash, Entry>,
}

#[derive(Debug)]
struct Entry {
    verified: Rc<Verified>,
    /// Of the keys that it was checked with.
    epoch: u64,
}

impl Entry {
    fn counts(&self, now: u64) -> bool {
        now < self.verified.expires_at
    }
}

impl Cache {
    /// An empty one.
    pub fn new() -> Self {
        Cache::default()
    }

    /// What a token was found to say, if that still holds. `epoch_of` tells the present epoch of the issuer's keys, by
    /// its position; `now` is in seconds since 1970.
    pub fn get(&mut self, token: &TokenHash, now: u64, epoch_of: impl Fn(usize) -> u64) -> Option<Rc<Verified>> {
        let holds = |entry: &Entry| entry.counts(now) && entry.epoch == epoch_of(entry.verified.issuer);
        if let Some(entry) = self.young.get(token) {
            return holds(entry).then(|| Rc::clone(&entry.verified));
        }
        let entry = self.old.remove(token).filter(holds)?;
        let verified = Rc::clone(&entry.verified);
        self.keep(*token, entry, now);
        Some(verified)
    }

    /// Remembers a token that was found good with the keys of this epoch, which was read before them.
    pub fn put(&mut self, token: TokenHash, verified: Rc<Verified>, epoch: u64, now: u64) {
        let entry = Entry { verified, epoch };
        if entry.counts(now) {
            self.keep(token, entry, now);
        }
    }

    fn keep(&mut self, token: TokenHash, entry: Entry, now: u64) {
        if self.young.len() >= HALF && !self.young.contains_key(&token) {
            self.make_room(now);
        }
        self.young.insert(token, entry);
    }

    /// Forgets what has expired. Where that is little, all that was not asked for lately goes too: so a look at every
    /// entry makes room for many.
    fn make_room(&mut self, now: u64) {
        self.young.retain(|_, entry| entry.counts(now));
        if self.young.len() > HALF / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// How many tokens are remembered, those in both generations twice.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stateless::tests::verified;

    const NOW: u64 = 1_800_000_000;

    fn entry(expires_at: u64) -> Rc<Verified> {
        Rc::new(Verified { expires_at, ..verified() })
    }

    fn hash(number: u64) -> TokenHash {
        token_hash(&number.to_be_bytes())
    }

    #[test]
    fn a_token_is_remembered_until_it_expires() {
        let mut cache = Cache::new();
        cache.put(hash(1), entry(NOW + 60), 1, NOW);
        assert!(cache.get(&hash(1), NOW + 59, |_| 1).is_some());
        assert!(cache.get(&hash(1), NOW + 60, |_| 1).is_none());
        assert!(cache.get(&hash(2), NOW, |_| 1).is_none());
        cache.put(hash(3), entry(NOW), 1, NOW);
        assert!(cache.get(&hash(3), NOW - 1, |_| 1).is_none(), "one in its last seconds of skew is checked each time");
    }

    #[test]
    fn a_token_is_forgotten_with_the_keys_of_its_own_issuer() {
        let mut cache = Cache::new();
        cache.put(hash(1), entry(NOW + 60), 7, NOW);
        let epochs = |of_first: u64, of_second: u64| move |issuer: usize| [of_first, of_second][issuer];
        assert!(cache.get(&hash(1), NOW, epochs(7, 1)).is_some());
        assert!(cache.get(&hash(1), NOW, epochs(7, 2)).is_some());
        assert!(cache.get(&hash(1), NOW, epochs(8, 1)).is_none());
    }

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
        let mut cache = Cache::new();
        cache.put(hash(0), entry(NOW + 60), 1, NOW);
        for number in 1..20_000 {
            cache.put(hash(number), entry(NOW + 60), 1, NOW);
            assert!(cache.get(&hash(0), NOW, |_| 1).is_some(), "after {number}");
            assert!(cache.len() <= MOST, "{}", cache.len());
        }
        assert!(cache.get(&hash(1), NOW, |_| 1).is_none(), "1 is long forgotten");
    }

    #[test]
    fn expired_tokens_make_room_before_others_do() {
        let mut cache = Cache::new();
        for number in 0..1_500 {
            cache.put(hash(number), entry(NOW + 1), 1, NOW);
        }
        for number in 1_500..3_000 {
            cache.put(hash(number), entry(NOW + 60), 1, NOW + 2);
        }
        let kept = (1_500..3_000).filter(|number| cache.get(&hash(*number), NOW + 2, |_| 1).is_some());
        assert_eq!(kept.count(), 1_500);
        assert_eq!(cache.len(), 1_500);
    }
}
