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

/// The position with the highest score among `(position, identity, weight)`; of equal ones the last. A server's score is
/// `-weight / ln(u)` with its `u` uniform in (0, 1), so that each wins in proportion to its weight.
pub fn rendezvous(key: u64, servers: impl Iterator<Item = (usize, u64, u32)>) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    // The least `u` with which a server of this weight can win: nearly all are passed over without a logarithm.
    let mut bar = (0, 0.0);
    for (at, identity, weight) in servers {
        let uniform = uniform(key, identity);
        if let Some((most, _)) = best.filter(|_| bar.0 != weight) {
            bar = (weight, least_uniform(weight, most));
        }
        if uniform < bar.1 {
            continue;
        }
        let score = -f64::from(weight) / uniform.ln();
        if best.is_none_or(|(most, _)| score >= most) {
            best = Some((score, at));
            bar = (weight, least_uniform(weight, score));
        }
    }
    best.map(|(_, at)| at)
}

/// 53 bits, and a half: never 0 and never 1.
fn uniform(key: u64, identity: u64) -> f64 {
    let hash = mix(key ^ mix(identity.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Below this no server of that weight reaches the score: a little lower than exact, so that rounding decides nothing.
fn least_uniform(weight: u32, score: f64) -> f64 {
    (-f64::from(weight) / score).exp() * (1.0 - 1e-9)
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

    #[test]
    fn passing_servers_over_changes_no_choice() {
        let plain = |key: u64, servers: &[(usize, u64, u32)]| {
            let scored =
                servers.iter().map(|(at, identity, weight)| (*at, -f64::from(*weight) / uniform(key, *identity).ln()));
            scored.max_by(|one, other| one.1.total_cmp(&other.1)).map(|(at, _)| at)
        };
        let mut random = fastrand::Rng::with_seed(1);
        for key in 0..20_000 {
            let weights = [1, 3, 256][random.usize(..3)];
            let servers: Vec<(usize, u64, u32)> =
                (0..random.usize(..40)).map(|at| (at, random.u64(..), random.u32(1..=weights))).collect();
            assert_eq!(rendezvous(key, servers.iter().copied()), plain(key, &servers), "{servers:?}");
        }
    }
}
