//! The one choice that everything turns on: which server an exchange goes to, and what becomes of its affinity.

use std::time::Duration;

use super::join::Ramp;
use super::{Ask, Cost, InFlight, NoServer, Pick, Picked, PinKind, Pool, Server, Tier, Tried, Waiting};
use crate::affinity::Preference;
use crate::balance::{Candidates, Chance, mix, rendezvous};
use crate::clock::Moment;
use crate::names::{Ineligible, MovedWhy, NoneWhy, RefusedWhy, Verdict};

/// Servers that are looked at for a pin's cost.
const LOOK_AT: usize = 16;

enum Choice {
    Server(usize, Verdict),
    /// The pinned session's own server is at its cap.
    Line(usize),
}

impl Pool {
    /// Chooses the server of an attempt, or a place in the line of a pinned session's own server.
    pub fn pick(&self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Result<Picked, NoServer> {
        // A server may fill up between being found eligible and being entered; then it is out of the next round.
        let mut full = ask.tried.clone();
        let mut ask = *ask;
        loop {
            let (server, verdict) = match self.choose(&ask, &full, random)? {
                Choice::Server(_, Verdict::Moved(MovedWhy::Rebalance)) if !self.may_move_one(ask.now) => {
                    ask.alone = false;
                    continue;
                }
                Choice::Server(server, verdict) => (server, verdict),
                Choice::Line(server) => match self.join_line(server, &ask, random) {
                    Some(place) => return Ok(place),
                    None if self.rules.fails() => return Err(NoServer(Verdict::Refused(RefusedWhy::Full))),
                    None => {
                        full.add(server);
                        continue;
                    }
                },
            };
            // What keeping it costs is asked before the exchange itself counts.
            let regret = (verdict == Verdict::Kept && self.weighs_pins).then(|| self.regret_of(server, &ask, random));
            match InFlight::enter(&self.servers[server]) {
                Some(guard) => return Ok(Picked::Server(self.picked(server, verdict, regret, guard, &ask, random))),
                // Others were faster: a hard session waits for its own server all the same.
                None if verdict == Verdict::Kept && self.may_queue(&ask) && !full.contains(server) => {
                    match self.join_line(server, &ask, random) {
                        Some(place) => return Ok(place),
                        None => full.add(server),
                    }
                }
                None => full.add(server),
            }
        }
    }

    /// A place in the line of a pinned session's own server, unless that has its length. What the pin costs counts as
    /// of now: now the exchange could go elsewhere, and who is in the line is what it will wait for. When its turn has
    /// come they are gone, and the wait would have cost nothing.
    fn join_line(&self, server: usize, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Option<Picked> {
        let regret = if self.weighs_pins { self.regret_of(server, ask, random) } else { Duration::ZERO };
        let waiting = Waiting::join(&self.servers[server], self.rules.queue_length())?;
        Some(Picked::Line { server, waiting, regret })
    }

    /// The pick of an exchange that has waited in the line of its own server, and has its place now. `regret` is that
    /// of joining the line; without it nothing is said of what the pin costs. Where the policy would have placed it is
    /// found now: its place in the shadow begins with its place on the server, as everybody's does.
    pub fn pick_of_waiting(
        &self,
        server: usize,
        guard: InFlight,
        regret: Option<Duration>,
        ask: &Ask<'_>,
        random: &mut fastrand::Rng,
    ) -> Pick {
        self.picked(server, Verdict::Waited, regret, guard, ask, random)
    }

    /// A choice that has come true: it is counted, and so is the one that the policy alone would have made.
    fn picked(
        &self,
        server: usize,
        verdict: Verdict,
        regret: Option<Duration>,
        guard: InFlight,
        ask: &Ask<'_>,
        random: &mut fastrand::Rng,
    ) -> Pick {
        self.servers[server].state.metrics.cells.of(ask.worker).picked.add(1);
        let (best, shadow) = self.shadow(ask, random).unzip();
        let disagrees = best.is_some_and(|best| best != server);
        let cost = regret.map(|regret| Cost { regret, disagrees });
        Pick { server, verdict, cost, shadow, guard }
    }

    fn may_queue(&self, ask: &Ask<'_>) -> bool {
        ask.may_wait && self.rules.kind == PinKind::Hard && self.rules.queue_length() > 0
    }

    fn choose(&self, ask: &Ask<'_>, out: &Tried, random: &mut fastrand::Rng) -> Result<Choice, NoServer> {
        match ask.preference {
            Preference::Pinned { server, session } => self.pinned(server, session, ask, out, random),
            Preference::Hashed { key } => match self.home_of(key) {
                Some(server) => self.pinned(server, key, ask, out, random),
                None => Err(NoServer(Verdict::None(NoneWhy::NoServer))),
            },
            Preference::Gone { session } => self.moved(session, MovedWhy::Gone, out, ask.now),
            Preference::None(why) => self.newcomer(Verdict::None(why), ask, out, random),
            Preference::New(why) => self.newcomer(Verdict::New(why), ask, out, random),
        }
    }

    /// What becomes of a session that belongs to `server` (the table of README, "When the pinned server cannot serve").
    fn pinned(
        &self,
        server: usize,
        session: u64,
        ask: &Ask<'_>,
        out: &Tried,
        random: &mut fastrand::Rng,
    ) -> Result<Choice, NoServer> {
        let fails = self.rules.fails();
        let refused = |why| Err(NoServer(Verdict::Refused(why)));
        if ask.tried.contains(server) {
            return if fails { refused(RefusedWhy::Down) } else { self.moved(session, MovedWhy::Failed, out, ask.now) };
        }
        let hard = self.rules.kind == PinKind::Hard;
        let unfit = if hard {
            self.servers[server].unfit_for_pinned(ask.now)
        } else {
            self.servers[server].unfit(ask.now).filter(|why| *why != Ineligible::Weightless)
        };
        let full = unfit == Some(Ineligible::Full) || out.contains(server);
        match unfit {
            _ if full && self.may_queue(ask) && !out.contains(server) => Ok(Choice::Line(server)),
            _ if full && hard && fails => {
                refused(if ask.may_wait { RefusedWhy::Full } else { RefusedWhy::QueueTimeout })
            }
            _ if full => self.moved(session, MovedWhy::Full, out, ask.now),
            Some(Ineligible::Down) if fails => refused(RefusedWhy::Down),
            Some(reason) => self.moved(session, reason.moved(), out, ask.now),
            None => Ok(match self.comes_over(server, session, ask, out) {
                Some(to) => Choice::Server(to, Verdict::Moved(MovedWhy::Rebalance)),
                None => self.kept_within_margin(server, session, out, ask.now, random),
            }),
        }
    }

    /// A soft pin may cost so many requests in flight, and no more: then the session goes to the first of its
    /// rendezvous order that is within the margin.
    fn kept_within_margin(
        &self,
        server: usize,
        session: u64,
        out: &Tried,
        now: Moment,
        random: &mut fastrand::Rng,
    ) -> Choice {
        let PinKind::Soft { margin } = self.rules.kind else { return Choice::Server(server, Verdict::Kept) };
        let margin = f64::from(margin);
        let load = |server: &Server| f64::from(server.state.in_flight()) / f64::from(server.weight().max(1));
        let tiers = self.tiers.load();
        let best = tiers
            .iter()
            .find_map(|tier| tier.policy.least_load(&TierView { pool: self, tier, out, now, ramp: None }, random));
        let Some(best) = best.filter(|best| load(&self.servers[server]) > best + margin) else {
            return Choice::Server(server, Verdict::Kept);
        };
        let near = |at: &usize| load(&self.servers[*at]) <= best + margin;
        match self.successor(session, out, now, near) {
            Some(to) => Choice::Server(to, Verdict::Moved(MovedWhy::Margin)),
            None => Choice::Server(server, Verdict::Kept),
        }
    }

    /// What keeping a session on its server costs one more request: what it can expect to take there over that on the
    /// best of the servers that the policy could pick now, which may be the session's own. An idle backup is none of them
    /// while others can serve.
    fn regret_of(&self, server: usize, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Duration {
        let tiers = self.tiers.load();
        let best = tiers.iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out: ask.tried, now: ask.now, ramp: None };
            view.least_expected(random)
        });
        let own = expected_latency(&self.servers[server]);
        Duration::from_nanos(own.zip(best).map_or(0.0, |(own, best)| (own - best).max(0.0)) as u64)
    }

    /// Where the policy sends a newcomer: to a server of the first tier that has an eligible one. Where all that could
    /// take it are in their slow start, they are still better than the next tier.
    fn by_policy(&self, out: &Tried, now: Moment, mut chance: Chance<'_>) -> Option<usize> {
        let ramp = self.slow_start.map(|window| Ramp { window, draw: chance.random.f64() });
        self.tiers.load().iter().find_map(|tier| {
            let mut pick = |ramp| tier.policy.pick(&TierView { pool: self, tier, out, now, ramp }, &mut chance);
            let picked = pick(ramp).or_else(|| ramp.and_then(|_| pick(None)));
            picked.map(|at| tier.members[at])
        })
    }

    /// The first of the rendezvous order of a key over all servers, whether they can serve or not. The file's weights
    /// count: one that is changed while running must not move sessions unseen.
    fn home_of(&self, key: u64) -> Option<usize> {
        let tiers = self.tiers.load();
        tiers.iter().find_map(|tier| {
            let members = tier.members.iter().map(|at| (*at, &self.servers[*at]));
            let weighted = members.map(|(at, server)| (at, server.identity, server.settings.weight));
            rendezvous(mix(key), weighted.filter(|(_, _, weight)| *weight > 0))
        })
    }

    fn moved(&self, session: u64, why: MovedWhy, out: &Tried, now: Moment) -> Result<Choice, NoServer> {
        let to = self.successor(session, out, now, |_| true).ok_or(NoServer(Verdict::None(NoneWhy::NoServer)))?;
        Ok(Choice::Server(to, Verdict::Moved(why)))
    }

    fn newcomer(
        &self,
        verdict: Verdict,
        ask: &Ask<'_>,
        out: &Tried,
        random: &mut fastrand::Rng,
    ) -> Result<Choice, NoServer> {
        let chance = Chance { random, turn: &self.turns[ask.worker.0], key: ask.key };
        let chosen = self.by_policy(out, ask.now, chance).ok_or(NoServer(Verdict::None(NoneWhy::NoServer)))?;
        Ok(Choice::Server(chosen, verdict))
    }

    /// Where a session moves to: the weighted rendezvous of its id over the eligible servers, so that concurrent
    /// requests, other workers and other proxies move it to the same place.
    pub(super) fn successor(
        &self,
        session: u64,
        out: &Tried,
        now: Moment,
        near: impl Fn(&usize) -> bool,
    ) -> Option<usize> {
        self.tiers.load().iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out, now, ramp: None };
            let eligible = (0..tier.members.len()).filter(|at| view.eligible(*at) && near(&tier.members[*at]));
            let scored = eligible.map(|at| (at, view.identity(at), tier.weights[at]));
            rendezvous(mix(session), scored).map(|at| tier.members[at])
        })
    }

    /// What a choice would be now; nothing is entered and nobody waits.
    pub fn preview(&self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Result<(usize, Verdict), NoServer> {
        match self.choose(ask, ask.tried, random)? {
            Choice::Server(server, verdict) => Ok((server, verdict)),
            Choice::Line(server) => Ok((server, Verdict::Waited)),
        }
    }
}

/// What one more request can expect to take on a server, in nanoseconds: what its answers have taken lately, and where it
/// is at its cap, as much again for every so many as wait before it. What requests wait on the server itself is in what its
/// answers took; to multiply that by the requests in flight would count it twice. It is as it was last measured: one that is
/// asked seldom is no better for it. Of one that was never asked nothing is expected.
fn expected_latency(server: &Server) -> Option<f64> {
    let state = &server.state;
    let cap = state.cap();
    let in_line =
        if cap > 0 && state.in_flight() >= cap { f64::from(state.waiting() + 1) / f64::from(cap) } else { 0.0 };
    Some(state.latency.last_nanos()? * (1.0 + in_line))
}

/// The servers of one tier as the policy sees them.
pub(super) struct TierView<'a> {
    pub(super) pool: &'a Pool,
    pub(super) tier: &'a Tier,
    pub(super) out: &'a Tried,
    pub(super) now: Moment,
    /// A newcomer's draw against slow starts.
    pub(super) ramp: Option<Ramp>,
}

impl TierView<'_> {
    pub(super) fn server(&self, at: usize) -> &Server {
        &self.pool.servers[self.tier.members[at]]
    }

    /// Whether earlier attempts have left the server open.
    pub(super) fn is_open(&self, at: usize) -> bool {
        !self.out.contains(self.tier.members[at])
    }

    /// The least to expect of an eligible server: of all in a small tier, of some in a large one.
    fn least_expected(&self, random: &mut fastrand::Rng) -> Option<f64> {
        let count = self.tier.members.len();
        let expected = |at: usize| expected_latency(self.server(at)).filter(|_| self.eligible(at));
        let of_all = || (0..count).filter_map(expected).reduce(f64::min);
        if count <= LOOK_AT {
            return of_all();
        }
        let of_some = (0..LOOK_AT).filter_map(|_| expected(random.usize(..count))).reduce(f64::min);
        // Where few can serve, chance may find none of them.
        of_some.or_else(of_all)
    }
}

impl Candidates for TierView<'_> {
    fn eligible(&self, at: usize) -> bool {
        self.is_open(at)
            && self.server(at).unfit(self.now).is_none()
            && self.ramp.is_none_or(|ramp| ramp.admits(self.server(at), self.now))
    }

    fn in_flight(&self, at: usize) -> u32 {
        self.server(at).state.in_flight()
    }

    fn latency(&self, at: usize) -> f64 {
        self.server(at).state.latency.nanos(self.now)
    }

    fn identity(&self, at: usize) -> u64 {
        self.server(at).identity
    }
}
