//! A cluster: who has which slot, and what to do when that changes.
//!
//! The map of slots is asked of any node and then believed until somebody objects: a node that says MOVED, a connection
//! that is lost, a slot that nobody has. Then it is asked for again, once for all who want it, and not more often than ten
//! times a second. What a node refuses because the slot is elsewhere it has not done, so a change may follow the slot too.
//!
//! An ask of several parts goes to the nodes that have them at the same time, and is put together in its own order.
//!
//! Nodes that only replicate are never asked. A primary that was cut off from the others and does not know yet that it
//! has been replaced may take writes that are lost with it: Redis Cluster has no remedy for that but its own time-out.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join_all, select_ok};

use super::commands::{self, Part, Piece};
use super::connection::{Connection, Course, Failure};
use super::dialer::{Dialer, Target};
use super::link::Node;
use super::map::{Map, Member};
use super::settings::Address;
use super::slots::{Range, Redirection, ranges, redirection, slot};
use crate::clock::{Clock, Moment};
use crate::session::store::{Answer, Ask, StoreError};
use crate::tasks;

/// The least time between two questions for the map.
const REST: Duration = Duration::from_millis(100);
/// The pause before a node is asked again that is busy with a slot.
const AGAIN: Duration = Duration::from_millis(15);
/// An ask that is sent on more often than this is not sent on at once: nodes may disagree for a while.
const HASTE: usize = 4;
/// Nodes asked for the map, and so many of them at once: the first answer counts.
const MOST_ASKED: usize = 12;
const AT_ONCE: usize = 3;
const NO_NODE: &str = "no node is named";

/// A cluster as one worker uses it.
pub struct Cluster {
    dialer: Rc<Dialer>,
    seeds: Vec<Address>,
    map: RefCell<Map>,
    /// Counts maps.
    version: Cell<u64>,
    /// Whoever asks for the map.
    turn: tokio::sync::Mutex<()>,
    /// When it was asked for.
    asked: Cell<Option<Moment>>,
    /// A task is about to ask for it.
    is_due: Cell<bool>,
}

/// A part of an ask that has no answer yet.
struct Pending {
    /// Which part.
    at: usize,
    slot: u16,
    /// Whom to ask this time, other than who has the slot.
    named: Option<Rc<Member>>,
}

/// Parts for one node.
struct Group {
    member: Rc<Member>,
    asking: bool,
    parts: Vec<Pending>,
}

/// An ask on its way through the cluster.
struct Journey {
    is_repeatable: bool,
    /// By part.
    pieces: Vec<Option<Piece>>,
    pending: Vec<Pending>,
    rounds: usize,
    has_to_wait: bool,
    /// What went wrong in this round, and may go right in the next.
    lost: Option<Failure>,
    has_lost: bool,
}

impl Journey {
    fn new(ask: &Ask) -> Self {
        let places = commands::places(ask);
        let part = |(at, key)| Pending { at, slot: slot(key), named: None };
        Journey {
            is_repeatable: commands::is_repeatable(ask),
            pieces: places.iter().map(|_| None).collect(),
            pending: places.iter().enumerate().map(part).collect(),
            rounds: 0,
            has_to_wait: false,
            lost: None,
            has_lost: false,
        }
    }
}

impl Cluster {
    /// A cluster of which these nodes are known at first.
    pub fn new(dialer: Rc<Dialer>, seeds: Vec<Address>) -> Self {
        Cluster {
            dialer,
            seeds,
            map: RefCell::default(),
            version: Cell::new(0),
            turn: tokio::sync::Mutex::new(()),
            asked: Cell::new(None),
            is_due: Cell::new(false),
        }
    }

    /// Asks all nodes that have a part of it, until there is an answer or a reason why not. It keeps no deadline.
    pub async fn ask(self: &Rc<Self>, ask: &Ask, course: &Course) -> Result<Answer, Failure> {
        let mut journey = Journey::new(ask);
        while !journey.pending.is_empty() {
            let version = self.version.get();
            let groups = self.groups(std::mem::take(&mut journey.pending)).await?;
            let whole = journey.pieces.len();
            let asked = groups.into_iter().map(|group| ask_group(ask, whole, group, course));
            for (group, answer) in join_all(asked).await {
                self.settle(&mut journey, group, answer)?;
            }
            self.rest_if_need_be(&mut journey, version).await?;
        }
        let pieces = journey.pieces.into_iter().collect::<Option<Vec<Piece>>>();
        pieces.and_then(|pieces| commands::whole(ask, pieces)).ok_or(Failure::Confused)
    }

    /// Sorts parts by whom to ask, and in each group by position.
    async fn groups(&self, mut pending: Vec<Pending>) -> Result<Vec<Group>, Failure> {
        pending.sort_by_key(|part| part.at);
        let mut groups: Vec<Group> = Vec::new();
        for mut part in pending {
            let (member, asking) = match part.named.take() {
                Some(member) => (member, true),
                None => (self.owner(part.slot).await?, false),
            };
            let is_its = |group: &&mut Group| Rc::ptr_eq(&group.member, &member) && group.asking == asking;
            match groups.iter_mut().find(is_its) {
                Some(group) => group.parts.push(part),
                None => groups.push(Group { member, asking, parts: vec![part] }),
            }
        }
        Ok(groups)
    }

    /// Takes over what a node answered, and says by an error that there will be no answer.
    fn settle(
        self: &Rc<Self>,
        journey: &mut Journey,
        group: Group,
        answer: Result<Vec<Part>, Failure>,
    ) -> Result<(), Failure> {
        match answer {
            Ok(answers) => {
                let mut answered = group.parts.into_iter().zip(answers);
                answered.try_for_each(|(part, answer)| self.settle_part(journey, &group.member.address, part, answer))
            }
            // Nothing was sent, or it does no harm twice.
            Err(failure) if failure.is_unsent() || (journey.is_repeatable && failure.is_loss()) => {
                journey.pending.extend(group.parts);
                journey.lost = Some(failure);
                Ok(())
            }
            Err(failure) => {
                self.renew_soon();
                Err(failure)
            }
        }
    }

    fn settle_part(
        self: &Rc<Self>,
        journey: &mut Journey,
        asked: &Address,
        mut part: Pending,
        answer: Part,
    ) -> Result<(), Failure> {
        let error = match answer {
            Ok(piece) => {
                if let Some(place) = journey.pieces.get_mut(part.at) {
                    *place = Some(piece);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        match redirection(&error, asked) {
            Some(Redirection::Moved(owner)) => {
                self.map.borrow_mut().give(part.slot, part.slot, &owner, |address| self.member(address));
                self.renew_soon();
            }
            Some(Redirection::Ask(target)) => {
                part.named = self.map.borrow_mut().place(&target, |address| self.member(address));
            }
            Some(Redirection::Wait) => journey.has_to_wait = true,
            None => return Err(Failure::Refused(error)),
        }
        journey.pending.push(part);
        Ok(())
    }

    /// Between two rounds: another map where a connection was lost, which counts once; a pause where nodes are busy, or
    /// send on what they should do.
    async fn rest_if_need_be(self: &Rc<Self>, journey: &mut Journey, version: u64) -> Result<(), Failure> {
        journey.rounds += 1;
        if let Some(lost) = journey.lost.take() {
            if std::mem::replace(&mut journey.has_lost, true) {
                self.renew_soon();
                return Err(lost);
            }
            return self.renew(version).await.map_err(Failure::NotConnected);
        }
        let is_sent_on_and_on = journey.rounds >= HASTE && !journey.pending.is_empty();
        if std::mem::take(&mut journey.has_to_wait) || is_sent_on_and_on {
            self.renew_soon();
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Does something on a node, whichever.
    pub async fn anywhere<T>(
        &self,
        course: &Course,
        work: &impl AsyncFn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.version.get() == 0 {
            self.renew(0).await.map_err(Failure::NotConnected)?;
        }
        let mut last = StoreError::Unavailable(NO_NODE.to_owned());
        for member in self.candidates().into_iter().take(MOST_ASKED) {
            match member.node.everyday.carry_out_once(course, work).await {
                Err(Failure::NotConnected(error)) => last = error,
                done => return done,
            }
        }
        Err(Failure::NotConnected(last))
    }

    /// All nodes that have slots.
    pub async fn primaries(&self) -> Result<Vec<Rc<Node>>, Failure> {
        self.renew(self.version.get()).await.map_err(Failure::NotConnected)?;
        Ok(self.map.borrow().members().iter().map(|member| Rc::clone(&member.node)).collect())
    }

    /// Who has a slot. Where nobody has, maps are asked for until somebody has.
    async fn owner(&self, slot: u16) -> Result<Rc<Member>, Failure> {
        loop {
            let version = self.version.get();
            let owner = self.map.borrow().owner(slot).cloned();
            match owner {
                Some(owner) => return Ok(owner),
                None => self.renew(version).await.map_err(Failure::NotConnected)?,
            }
        }
    }

    /// Asks for the map, and does not wait for it.
    pub fn renew_soon(self: &Rc<Self>) {
        if self.is_due.replace(true) {
            return;
        }
        let cluster = Rc::clone(self);
        // Owned by nobody, as it is for all: it ends by itself, within the time of a few connections.
        tasks::spawn(async move {
            let renewed = cluster.renew(cluster.version.get()).await;
            cluster.is_due.set(false);
            if let Err(error) = renewed {
                tracing::debug!(%error, "no node of the cluster says who has which slot");
            }
        });
    }

    /// Asks for the map that comes after a version; all who wait for that wait for one answer.
    async fn renew(&self, version: u64) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        if self.version.get() != version {
            return Ok(());
        }
        if let Some(asked) = self.asked.get() {
            tokio::time::sleep(REST.saturating_sub(Clock::now().since(asked))).await;
        }
        self.asked.set(Some(Clock::now()));
        let candidates = self.candidates();
        let ranges = self.ask_for_map(&candidates).await?;
        self.take_over(&ranges, &candidates);
        Ok(())
    }

    /// Whom to ask: those that there is a connection to, then those that the settings name, then all others.
    fn candidates(&self) -> Vec<Rc<Member>> {
        let mut candidates = self.map.borrow().members().to_vec();
        fastrand::shuffle(&mut candidates);
        for seed in &self.seeds {
            if !candidates.iter().any(|member| member.address == *seed) {
                candidates.push(self.member(seed));
            }
        }
        candidates.sort_by_cached_key(|member| {
            let is_seed = self.seeds.contains(&member.address);
            (!member.node.everyday.is_connected(), !is_seed)
        });
        candidates
    }

    async fn ask_for_map(&self, candidates: &[Rc<Member>]) -> Result<Vec<Range>, StoreError> {
        let mut last = StoreError::Unavailable(NO_NODE.to_owned());
        let asked = candidates.get(..MOST_ASKED).unwrap_or(candidates);
        for some in asked.chunks(AT_ONCE) {
            // A node that died with its host says nothing for long.
            match select_ok(some.iter().map(|member| Box::pin(self.ask_one_for_map(member)))).await {
                Ok((ranges, _)) => return Ok(ranges),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_one_for_map(&self, member: &Member) -> Result<Vec<Range>, StoreError> {
        let course = Course::default();
        let asked = member.node.everyday.carry_out(&course, async |connection| {
            let reply = connection.single(redis::cmd("CLUSTER").arg("SLOTS")).await?;
            connection.fitting(ranges(&reply, &member.address))
        });
        let limit = self.dialer.settings.connect.saturating_add(self.dialer.settings.timeout);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(ranges)) if ranges.is_empty() => {
                Err(StoreError::Unavailable(format!("{} knows of nobody who has a slot", member.address)))
            }
            Ok(answer) => answer.map_err(StoreError::from),
            Err(_) => {
                course.retire_what_is_silent(self.dialer.settings.timeout / 2);
                Err(StoreError::TimedOut)
            }
        }
    }

    /// Makes a new map. Nodes that are not in it are let go.
    fn take_over(&self, ranges: &[Range], known: &[Rc<Member>]) {
        let member = |address: &Address| {
            let known = known.iter().find(|member| member.address == *address);
            known.map_or_else(|| self.member(address), Rc::clone)
        };
        let mut map = Map::default();
        for Range { first, last, primary } in ranges {
            map.give(*first, *last, primary, member);
        }
        *self.map.borrow_mut() = map;
        self.version.set(self.version.get() + 1);
    }

    /// A node that nobody has asked yet.
    fn member(&self, address: &Address) -> Rc<Member> {
        let node = Node::new(&self.dialer, Target::At(address.clone()));
        Rc::new(Member { address: address.clone(), node: Rc::new(node) })
    }
}

/// Asks a node for the parts that are its own; `whole`: how many there are in all.
async fn ask_group(ask: &Ask, whole: usize, group: Group, course: &Course) -> (Group, Result<Vec<Part>, Failure>) {
    let Group { member, asking, parts } = &group;
    let answer = if parts.len() == whole {
        member.node.ask(ask, *asking, course).await
    } else {
        let wanted: Vec<usize> = parts.iter().map(|part| part.at).collect();
        member.node.ask(&commands::some_parts(ask, &wanted), *asking, course).await
    };
    (group, answer)
}
