use std::collections::HashMap;
use std::sync::Arc;

use proximity_table::{BackendKey, BackendProtocol, HealthPolicy, Route, Source, Verdict, World};

/// What is probed: a backend of an app, whatever names lead to it.
pub type TargetKey = (Arc<str>, BackendKey);

/// The probed backends of a world, kept up with the next worlds by what changed in them.
#[derive(Debug, Default)]
pub struct Targets {
    claims: HashMap<TargetKey, Vec<Claim>>,
    world: Option<Arc<World>>,
}

/// A change of what is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Probe a backend this way from now on: a new one, or one with another policy.
    Probe(TargetKey, Arc<HealthPolicy>),
    /// Probe it no longer.
    Forget(TargetKey),
}

/// One name's wish for a backend to be probed.
#[derive(Clone, Debug)]
struct Claim {
    name: Arc<str>,
    policy: Arc<HealthPolicy>,
    from_lease: bool,
}

impl Targets {
    /// Moves on to another world and tells what changes.
    pub fn follow(&mut self, world: &Arc<World>) -> Vec<Change> {
        let old = self.world.replace(world.clone());
        let mut changes = HashMap::new();
        let mut known = 0;
        for (name, route) in &world.routes {
            let before = old.as_ref().and_then(|old| old.routes.get(name));
            known += usize::from(before.is_some());
            if before.is_some_and(|before| Arc::ptr_eq(before, route)) {
                continue;
            }
            // New claims first: what stays claimed is not forgotten in between.
            for key in keys(route) {
                self.claim(key, name, route, &mut changes);
            }
            if let Some(before) = before {
                for key in keys(before) {
                    if !keys(route).any(|kept| kept == key) {
                        self.release(&key, name, &mut changes);
                    }
                }
            }
        }
        if let Some(old) = old.filter(|old| old.routes.len() > known) {
            for (name, route) in old.routes.iter().filter(|(name, _)| !world.routes.contains_key(*name)) {
                for key in keys(route) {
                    self.release(&key, name, &mut changes);
                }
            }
        }
        changes.into_iter().filter_map(|(key, before)| self.change_of(key, before)).collect()
    }

    fn claim(&mut self, key: TargetKey, name: &Arc<str>, route: &Route, changes: &mut Before) {
        let claims = self.claims.entry(key.clone()).or_default();
        changes.entry(key).or_insert_with(|| policy_of(claims));
        let claim = Claim {
            name: name.clone(),
            policy: route.health.clone(),
            from_lease: route.source == Source::Lease,
        };
        match claims.iter_mut().find(|claim| claim.name == *name) {
            Some(there) => *there = claim,
            None => claims.push(claim),
        }
    }

    fn release(&mut self, key: &TargetKey, name: &Arc<str>, changes: &mut Before) {
        if let Some(claims) = self.claims.get_mut(key) {
            changes.entry(key.clone()).or_insert_with(|| policy_of(claims));
            claims.retain(|claim| claim.name != *name);
        }
    }

    fn change_of(&mut self, key: TargetKey, before: Option<Arc<HealthPolicy>>) -> Option<Change> {
        let now = self.claims.get(&key).and_then(|claims| policy_of(claims));
        match (before, now) {
            (_, None) => {
                self.claims.remove(&key);
                Some(Change::Forget(key))
            }
            (Some(before), Some(now)) if before == now => None,
            (_, Some(now)) => Some(Change::Probe(key, now)),
        }
    }
}

/// Which policy the touched backends had before.
type Before = HashMap<TargetKey, Option<Arc<HealthPolicy>>>;

/// A policy that was written down wins over the default of a vhost made from a lease.
fn policy_of(claims: &[Claim]) -> Option<Arc<HealthPolicy>> {
    claims.iter().min_by_key(|claim| claim.from_lease).map(|claim| claim.policy.clone())
}

/// The backends of a route that are probed. An app that is stopped or switched off is left alone, and only
/// what can be spoken is asked.
fn keys(route: &Route) -> impl Iterator<Item = TargetKey> + '_ {
    let probed = matches!(route.verdict, Verdict::Ready | Verdict::Starting)
        && route.protocol == BackendProtocol::Http;
    let candidates = if probed { &route.candidates[..] } else { &[] };
    candidates.iter().map(|backend| (route.app.clone(), backend.key))
}
