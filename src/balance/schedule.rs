//! A weighted schedule: each server stands in it as often as its weight, spread evenly.
//!
//! Server `i` with weight `w` stands at the positions `(k + 1/2) / w` of the round; sorting all positions gives the
//! smooth order that nginx computes at each pick, but a pick is one array read.

/// The most slots that a schedule has; weights are scaled down beyond.
const MOST_SLOTS: u64 = 65_536;

pub(super) struct Schedule {
    slots: Box<[u32]>,
}

impl Schedule {
    pub(super) fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().copied().filter(|weight| *weight > 0).fold(0, gcd).max(1);
        let sum: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
        let scale = |weight: u32| match u64::from(weight / divisor) {
            0 => 0,
            share if sum <= MOST_SLOTS => share,
            share => (share * MOST_SLOTS / sum).max(1),
        };
        let mut positions = Vec::new();
        for (server, weight) in (0u32..).zip(weights) {
            let share = scale(*weight);
            // Compared as fractions of whole numbers, so that the order is the same on every machine.
            positions.extend((0..share).map(|k| ((2 * k + 1, 2 * share), server)));
        }
        positions.sort_by(|((a, b), one), ((c, d), other)| (a * d).cmp(&(c * b)).then(one.cmp(other)));
        Schedule { slots: positions.into_iter().map(|(_, server)| server).collect() }
    }

    /// The server whose slot `number` is, counted round and round; none when every weight is 0.
    pub(super) fn slot(&self, number: u32) -> Option<usize> {
        let at = usize::try_from(number).ok()?.checked_rem(self.slots.len())?;
        usize::try_from(self.slots[at]).ok()
    }
}

fn gcd(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heavy_server_is_spread_over_the_round() {
        assert_eq!(*Schedule::new(&[4, 2, 1]).slots, [0, 1, 0, 2, 0, 1, 0]);
        assert_eq!(*Schedule::new(&[100, 100]).slots, [0, 1], "common factors are divided out");
        assert_eq!(Schedule::new(&[0, 0]).slot(3), None);
    }

    #[test]
    fn many_heavy_servers_stay_within_the_bound() {
        let weights: Vec<u32> = (1..=1_000).collect();
        assert!(Schedule::new(&weights).slots.len() <= 66_000);
    }
}
