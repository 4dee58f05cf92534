//! What a configuration says of the pool: its servers, and the policy in force.

use std::path::Path;
use std::time::Duration;

use super::policies::Costs;
use super::{CAPACITY, MOST_CAPACITY, Options, SimulateError};
use crate::affinity::Source;
use crate::clock::Moment;
use crate::config::{self, Hosts, PoolSettings};
use crate::pool::ServerSettings;
use crate::twin::{Discipline, PolicyModel, ServerModel};

/// One pool of a file.
pub(super) struct Configured {
    pub pool: Box<str>,
    pub servers: Vec<ServerSettings>,
    /// By position: what each serves at full speed at once; 0: to be found out.
    pub capacities: Vec<u32>,
    pub policy: PolicyModel,
    pub costs: Costs,
    /// What it has that the model has not.
    pub left_out: Option<&'static str>,
}

/// Reads the pools of a file.
pub(super) fn load(path: &Path) -> Result<Vec<Configured>, SimulateError> {
    let loaded = config::load(path, Hosts::Left)?;
    Ok(loaded.configuration.pools.iter().map(configured).collect())
}

impl Configured {
    /// What the server at this position serves at full speed at once, if the file says so and the command line does not
    /// say otherwise.
    pub(super) fn capacity(&self, server: usize, options: &Options<'_>) -> Option<u32> {
        let told = self.capacities.get(server).copied().filter(|told| *told > 0 && options.capacity.is_none())?;
        Some(told.min(MOST_CAPACITY))
    }

    /// Whether the file says so of every server.
    pub(super) fn tells_capacities(&self, options: &Options<'_>) -> bool {
        (0..self.servers.len()).all(|server| self.capacity(server, options).is_some())
    }

    /// The pool that is meant: the one named, else the log's, else the only one.
    pub(super) fn choose(all: Vec<Self>, named: Option<&str>, of_log: Option<&str>) -> Result<Self, SimulateError> {
        let known = all.iter().map(|one| format!("`{}`", one.pool)).collect::<Vec<_>>().join(", ");
        let is_only = all.len() == 1;
        let position = |name: &str| all.iter().position(|one| *one.pool == *name);
        let found = named.and_then(position).or_else(|| of_log.and_then(position));
        let at = match (found, named) {
            (Some(at), _) => at,
            // What the log calls the pool need not be what the file does.
            (None, named) if is_only && (named.is_none() || of_log.is_some()) => 0,
            (None, Some(name)) => return Err(SimulateError::UnknownPool { name: name.to_owned(), known }),
            (None, None) => return Err(SimulateError::WhichPool { known }),
        };
        let chosen = all.into_iter().nth(at).ok_or(SimulateError::WhichPool { known })?;
        if !chosen.servers.iter().any(|server| server.weight > 0) {
            return Err(SimulateError::NoServers { pool: chosen.pool.into() });
        }
        Ok(chosen)
    }
}

fn configured(pool: &PoolSettings) -> Configured {
    let source = pool.sticky.as_ref().map(|sticky| &sticky.source);
    // A header or an address says by itself where it belongs.
    let is_hashed = matches!(source, Some(Source::Header(_) | Source::Address));
    let costs = Costs { warm_up: pool.twin.warm_up, store_round_trip: pool.twin.store_round_trip };
    let policy = PolicyModel {
        name: format!("{} as configured", pool.name).into(),
        balance: pool.balance,
        is_hashed,
        pins: source.map(|_| pool.pins),
        is_in_force: true,
        warm_up: if source.is_some() { costs.warm_up } else { Duration::ZERO },
        store_round_trip: if pool.shared.is_some() { costs.store_round_trip } else { Duration::ZERO },
    };
    let servers = pool.servers.iter().map(|server| server.settings.clone()).collect();
    let capacities = pool.servers.iter().map(|server| server.capacity).collect();
    let left_out = match (pool.slow_start.is_some(), pool.rebalance.is_some()) {
        (true, true) => Some("The pool's slow start and rebalancing are not modelled."),
        (true, false) => Some("The pool's slow start is not modelled."),
        (false, true) => Some("The pool's rebalancing is not modelled."),
        (false, false) => None,
    };
    Configured { pool: Box::from(&*pool.name), servers, capacities, policy, costs, left_out }
}

/// The servers that are modelled: of the configuration, or so many of these names that are all alike.
/// One of twice the weight is taken to be twice the machine.
pub(super) fn servers(
    configured: Option<&Configured>,
    names: &[Box<str>],
    discipline: Discipline,
    options: &Options<'_>,
) -> Vec<ServerModel> {
    let alike = |name: &str| ServerSettings { name: name.into(), weight: 1, max_requests: 0, backup: false };
    let settings = match configured {
        Some(configured) => configured.servers.clone(),
        None => names.iter().map(|name| alike(name)).collect(),
    };
    let smallest = settings.iter().map(|server| server.weight).filter(|weight| *weight > 0).min().unwrap_or(1);
    let told = |at: usize| configured.and_then(|configured| configured.capacity(at, options));
    let by_weight = |weight: u32| capacity(options.capacity.unwrap_or(CAPACITY), weight.max(smallest), smallest);
    let model = |(at, server): (usize, ServerSettings)| ServerModel {
        capacity: told(at).unwrap_or_else(|| by_weight(server.weight)),
        name: server.name,
        weight: server.weight,
        live_weight: None,
        max_requests: server.max_requests,
        backup: server.backup,
        drains: false,
        discipline,
        speed: 1.0,
        from: Moment::from_nanos(0),
        until: Moment::from_nanos(u64::MAX),
    };
    settings.into_iter().enumerate().map(model).collect()
}

fn capacity(each: u32, weight: u32, smallest: u32) -> u32 {
    let rounded = (u64::from(each) * u64::from(weight) + u64::from(smallest) / 2) / u64::from(smallest.max(1));
    u32::try_from(rounded).unwrap_or(u32::MAX).clamp(1, MOST_CAPACITY)
}

/// What was taken for granted about servers.
pub(super) fn assumption(
    servers: &[ServerModel],
    configured: Option<&Configured>,
    options: &Options<'_>,
    discipline: &str,
) -> String {
    if configured.is_some_and(|configured| configured.tells_capacities(options)) {
        return format!("What a server serves at full speed at once is as configured, {discipline}.");
    }
    let each = options.capacity.unwrap_or(CAPACITY).clamp(1, MOST_CAPACITY);
    let uneven = servers.iter().any(|server| server.capacity != each);
    let weighed = if uneven { ", times its weight over the smallest" } else { "" };
    format!("A server serves {each} at full speed at once{weighed} (--capacity), {discipline}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<Configured> {
        let policy = super::super::policies::compared(None, Costs::default()).remove(0);
        let server = ServerSettings { name: "a".into(), weight: 1, max_requests: 0, backup: false };
        let pool = |name: &&str| Configured {
            pool: (*name).into(),
            servers: vec![server.clone()],
            capacities: vec![0],
            policy: policy.clone(),
            costs: Costs::default(),
            left_out: None,
        };
        names.iter().map(pool).collect()
    }

    #[test]
    fn the_pool_is_the_one_named_or_the_logs_or_the_only_one() {
        type Case =
            (&'static [&'static str], Option<&'static str>, Option<&'static str>, Result<&'static str, &'static str>);
        let cases: [Case; 7] = [
            (&["shop", "api"], Some("api"), Some("shop"), Ok("api")),
            (&["shop", "api"], None, Some("shop"), Ok("shop")),
            (&["shop"], None, None, Ok("shop")),
            (&["shop"], None, Some("backend"), Ok("shop")),
            (&["shop"], Some("backend"), Some("backend"), Ok("shop")),
            (&["shop"], Some("backend"), None, Err("the configuration has no pool `backend`; it has `shop`")),
            (
                &["shop", "api"],
                None,
                None,
                Err("the configuration has several pools; name one with --pool: `shop`, `api`"),
            ),
        ];
        for (all, wanted, of_log, expected) in cases {
            let chosen = Configured::choose(named(all), wanted, of_log);
            let chosen = chosen.map(|chosen| chosen.pool.to_string()).map_err(|error| error.to_string());
            assert_eq!(chosen.as_deref().map_err(String::as_str), expected, "{all:?} {wanted:?} {of_log:?}");
        }
    }

    #[test]
    fn twice_the_weight_is_twice_the_machine() {
        assert_eq!(
            [(1, 1), (2, 1), (3, 2), (100, 100), (250, 100)].map(|(of, least)| capacity(8, of, least)),
            [8, 16, 12, 8, 20]
        );
        assert_eq!(capacity(0, 1, 1), 1, "a server that serves nobody is none");
        assert_eq!(capacity(u32::MAX, u32::MAX, 1), MOST_CAPACITY);
    }
}
