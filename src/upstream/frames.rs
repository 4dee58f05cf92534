//! Where a WebSocket stream stands: in the middle of a frame, or between two (RFC 6455, section 5.2).
//!
//! Nothing is decoded. Only between two frames may a proxy add one of its own, and the one it adds is a Close.

/// The longest header without its mask: two bytes and a 64-bit length.
const LONGEST_HEADER: usize = 10;
const MASK_BYTES: u64 = 4;
/// "Going Away": a server going down, or a page navigated away from (RFC 6455, section 7.4.1).
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();

/// What has passed in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frames {
    header: [u8; LONGEST_HEADER],
    /// How much of the next frame's header has passed.
    have: usize,
    /// What is left of the present frame, its mask included.
    left: u64,
}

impl Frames {
    /// Whether the next byte begins a frame.
    pub(super) const fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Takes in what has passed.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// How much of these bytes belongs to the present frame.
    pub(super) fn until_end(mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while !self.is_between() && passed < bytes.len() {
            passed += self.step(&bytes[passed..]);
        }
        passed
    }

    /// Takes in the next byte of a header, or what there is of a payload; says how much.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.left > 0 {
            let passed = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= passed as u64;
            return passed;
        }
        self.header[self.have] = bytes[0];
        self.have += 1;
        if let Some(left) = payload(&self.header[..self.have]) {
            (self.have, self.left) = (0, left);
        }
        1
    }
}

/// What follows a header, once it is whole: the mask, where there is one, and the payload.
fn payload(header: &[u8]) -> Option<u64> {
    let (masked, short) = (header.get(1)? & 0x80 != 0, header[1] & 0x7f);
    let length = match short {
        126 => u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)),
        127 => u64::from_be_bytes(header.get(2..10)?.try_into().ok()?),
        _ => u64::from(short),
    };
    Some(length.saturating_add(if masked { MASK_BYTES } else { 0 }))
}

/// A Close frame for a client, which takes no masks.
pub(super) const fn close_for_client() -> [u8; 4] {
    [0x88, 2, GOING_AWAY[0], GOING_AWAY[1]]
}

/// A Close frame for a server, which takes nothing without one.
pub(super) const fn close_for_server(mask: [u8; 4]) -> [u8; 8] {
    [0x88, 0x82, mask[0], mask[1], mask[2], mask[3], GOING_AWAY[0] ^ mask[0], GOING_AWAY[1] ^ mask[1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x82];
        match payload {
            0..=125 => bytes.push(mask | payload as u8),
            126..=65_535 => {
                bytes.push(mask | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![7; payload + if masked { 4 } else { 0 }]);
        bytes
    }

    proptest! {
        /// However the bytes are cut, the boundaries are where frames end and nowhere else.
        #[test]
        fn boundaries_are_found_however_the_stream_is_cut(
            sizes in proptest::collection::vec((0usize..70_000, any::<bool>()), 1..5),
            cuts in proptest::collection::vec(1usize..5_000, 1..50),
        ) {
            let whole: Vec<Vec<u8>> = sizes.iter().map(|(size, masked)| frame(*size, *masked)).collect();
            let ends: Vec<usize> = whole.iter().scan(0, |at, frame| { *at += frame.len(); Some(*at) }).collect();
            let stream = whole.concat();
            let (mut frames, mut at) = (Frames::default(), 0);
            for cut in cuts.iter().cycle() {
                if at == stream.len() {
                    break;
                }
                let next = (at + cut).min(stream.len());
                let end = ends.iter().copied().find(|end| *end > at).unwrap_or(stream.len());
                let inside = !frames.is_between();
                prop_assert_eq!(frames.until_end(&stream[at..]), if inside { end - at } else { 0 });
                frames.pass(&stream[at..next]);
                at = next;
                prop_assert_eq!(frames.is_between(), ends.contains(&at));
            }
        }
    }

    #[test]
    fn a_length_out_of_this_world_is_waited_for_and_overflows_nothing() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3]);
        assert!(!frames.is_between());
    }
}
