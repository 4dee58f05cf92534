//! Who has which slot, as far as one worker knows.

use std::rc::Rc;

use super::link::Node;
use super::settings::Address;
use super::slots::SLOTS;

/// Nodes known; a cluster of Redis has a thousand at most.
const MOST_NODES: usize = 1_000;
/// No node.
const NOBODY: u16 = u16::MAX;

/// A node, and where it is.
pub struct Member {
    pub address: Address,
    pub node: Rc<Node>,
}

/// Who has which slot, as far as is known.
pub struct Map {
    /// By slot: which of the members.
    owners: Box<[u16]>,
    members: Vec<Rc<Member>>,
}

impl Default for Map {
    fn default() -> Self {
        Map { owners: vec![NOBODY; usize::from(SLOTS)].into(), members: Vec::new() }
    }
}

impl Map {
    /// All nodes known.
    pub fn members(&self) -> &[Rc<Member>] {
        &self.members
    }

    /// Who has a slot.
    pub fn owner(&self, slot: u16) -> Option<&Rc<Member>> {
        self.members.get(usize::from(*self.owners.get(usize::from(slot))?))
    }

    /// Notes who has slots; who is not a member yet becomes one.
    pub fn give(&mut self, first: u16, last: u16, address: &Address, make: impl FnOnce(&Address) -> Rc<Member>) {
        let position = self.position(address, make).and_then(|position| u16::try_from(position).ok());
        let slots = self.owners.get_mut(usize::from(first)..=usize::from(last));
        if let (Some(slots), Some(position)) = (slots, position) {
            slots.fill(position);
        }
    }

    /// The member of an address; none: there are too many.
    pub fn place(&mut self, address: &Address, make: impl FnOnce(&Address) -> Rc<Member>) -> Option<Rc<Member>> {
        let position = self.position(address, make)?;
        self.members.get(position).cloned()
    }

    fn position(&mut self, address: &Address, make: impl FnOnce(&Address) -> Rc<Member>) -> Option<usize> {
        let known = self.members.iter().position(|member| member.address == *address);
        if known.is_none() && self.members.len() < MOST_NODES {
            self.members.push(make(address));
            return Some(self.members.len() - 1);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::dialer::{Dialer, Target};
    use super::super::sentinel::Topology;
    use super::super::settings::RedisSettings;
    use super::*;

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".to_owned(), port }
    }

    fn dialer() -> Rc<Dialer> {
        let settings = Arc::new(RedisSettings::cluster(&["10.0.0.1"]).unwrap());
        Rc::new(Dialer::new(settings, Arc::new(Topology::default())).unwrap())
    }

    fn member(dialer: &Rc<Dialer>, address: &Address) -> Rc<Member> {
        let node = Rc::new(Node::new(dialer, Target::At(address.clone())));
        Rc::new(Member { address: address.clone(), node })
    }

    #[test]
    fn a_slot_is_with_whom_it_was_given_to_last() {
        let dialer = dialer();
        let make = |address: &Address| member(&dialer, address);
        let mut map = Map::default();
        assert!(map.owner(0).is_none() && map.owner(SLOTS - 1).is_none());
        map.give(0, 99, &address(1), make);
        map.give(100, SLOTS - 1, &address(2), make);
        map.give(7, 7, &address(2), make);
        let port = |slot| map.owner(slot).map(|owner| owner.address.port);
        for (slot, expected) in [(0, 1), (6, 1), (7, 2), (8, 1), (99, 1), (100, 2), (SLOTS - 1, 2)] {
            assert_eq!(port(slot), Some(expected), "{slot}");
        }
        assert_eq!((port(SLOTS), port(u16::MAX)), (None, None), "there are no such slots");
        assert_eq!(map.members().len(), 2);
    }

    #[test]
    fn a_node_is_known_once_and_there_is_a_bound() {
        let dialer = dialer();
        let mut map = Map::default();
        let first = map.place(&address(1), |address| member(&dialer, address)).unwrap();
        let again = map.place(&address(1), |_| panic!("it is known")).unwrap();
        assert!(Rc::ptr_eq(&first, &again));
        for port in 2..=1_000 {
            assert!(map.place(&address(port), |address| member(&dialer, address)).is_some(), "{port}");
        }
        assert!(map.place(&address(1_001), |address| member(&dialer, address)).is_none());
        map.give(3, 3, &address(1_001), |address| member(&dialer, address));
        assert!(map.owner(3).is_none() && map.members().len() == MOST_NODES);
    }
}
