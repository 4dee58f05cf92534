//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights by Schindelhauer and Schomaker 2005).
//!
//! Every (key, server) pair gets a score; the highest wins. Taking a server away moves only its own keys, and proxies
//! that know the same names agree with no shared state.

/// Mixes 64 bits (the finaliser of splitmix64): a fixed function, the same on every machine.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The position with the highest score among `(position, identity, weight)`.
pub fn rendezvous(key: u64, servers: impl Iterator<Item = (usize, u64, u32)>) -> Option<usize> {
    let scored = servers.map(|(at, identity, weight)| (at, score(key, identity, weight)));
    scored.max_by(|one, other| one.1.total_cmp(&other.1)).map(|(at, _)| at)
}

/// `-weight / ln(u)` with `u` uniform in (0, 1): each server wins in proportion to its weight.
fn score(key: u64, identity: u64, weight: u32) -> f64 {
    let hash = mix(key ^ mix(identity.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    // 53 bits, and a half: never 0 and never 1.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proxies of different releases stand side by side: these choices may never change.
    #[test]
    fn golden_choices() {
        let servers = || [1u64, 2, 3, 4].into_iter().enumerate().map(|(at, identity)| (at, identity, [1, 1, 2, 4][at]));
        let chosen: Vec<usize> = (0..16).map(|key| rendezvous(key, servers()).unwrap()).collect();
        assert_eq!(chosen, [2, 1, 1, 2, 3, 2, 3, 3, 0, 3, 2, 3, 2, 3, 2, 1]);
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
    }
}
