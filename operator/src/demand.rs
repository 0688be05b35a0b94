//! What the routers have in their hands, from their Leases. A router whose Lease
//! is no longer renewed counts for nothing: its requests are somebody else's now.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crds::name::{LEASE_DURATION_SECONDS, annotation};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use protocol::load::{Demand, RouterReport};

use crate::key::Key;

const LIFETIME: Duration = Duration::from_secs(LEASE_DURATION_SECONDS.unsigned_abs() as u64);

#[derive(Clone, Debug)]
struct Router {
    renewed: Option<MicroTime>,
    seen: Instant,
    report: RouterReport,
}

/// All routers' figures, fed by the watch of Leases.
#[derive(Debug, Default)]
pub struct Demands {
    routers: HashMap<Key, Router>,
}

impl Demands {
    /// A router's Lease was seen. Returns the deployments whose figures changed.
    pub fn apply(&mut self, lease: &Lease, now: Instant) -> Vec<Key> {
        let report = lease
            .annotations()
            .get(annotation::ROUTER_LOAD)
            .and_then(|text| serde_json::from_str::<RouterReport>(text).ok())
            .unwrap_or_default();
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let key = Key::of(lease);
        let before = self.routers.get(&key);
        let seen = match before {
            Some(before) if before.renewed == renewed => before.seen,
            _ => now,
        };
        let changed = before.map_or_else(
            || report.deployments.keys().cloned().collect(),
            |before| differing(&before.report, &report),
        );
        self.routers.insert(
            key,
            Router {
                renewed,
                seen,
                report,
            },
        );
        changed.iter().filter_map(|name| parse(name)).collect()
    }

    /// A router is gone.
    pub fn delete(&mut self, key: &Key) -> Vec<Key> {
        let gone = self
            .routers
            .remove(key)
            .map(|router| router.report)
            .unwrap_or_default();
        gone.deployments
            .keys()
            .filter_map(|name| parse(name))
            .collect()
    }

    /// The sum over the routers that are heard of.
    #[must_use]
    pub fn of(&self, deployment: &Key, now: Instant) -> Demand {
        let name = deployment.to_string();
        self.routers
            .values()
            .filter(|router| now.saturating_duration_since(router.seen) < LIFETIME)
            .filter_map(|router| router.report.deployments.get(&name))
            .fold(Demand::default(), |sum, one| Demand {
                in_flight: sum.in_flight.saturating_add(one.in_flight),
                waiting: sum.waiting.saturating_add(one.waiting),
            })
    }
}

fn differing(one: &RouterReport, two: &RouterReport) -> BTreeSet<String> {
    let names = one.deployments.keys().chain(two.deployments.keys());
    names
        .filter(|name| one.deployments.get(*name) != two.deployments.get(*name))
        .cloned()
        .collect()
}

fn parse(name: &str) -> Option<Key> {
    let (namespace, name) = name.split_once('/')?;
    Some(Key::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(router: &str, renewed: &str, waiting: u32) -> Lease {
        let mut report = RouterReport::default();
        let demand = Demand {
            in_flight: 1,
            waiting,
        };
        report.deployments.insert("ns/llava".into(), demand);
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "system", "name": router,
                "annotations": {annotation::ROUTER_LOAD: serde_json::to_string(&report).unwrap()},
            },
            "spec": {"renewTime": renewed},
        }))
        .unwrap()
    }

    #[test]
    fn figures_of_all_routers_add_up_until_one_falls_silent() {
        let mut demands = Demands::default();
        let start = shell::clock::now();
        let llava = Key::new("ns", "llava");
        let t0 = "2026-01-01T00:00:00.000000Z";
        assert_eq!(
            demands.apply(&lease("one", t0, 2), start),
            std::slice::from_ref(&llava)
        );
        demands.apply(&lease("two", t0, 3), start);
        assert_eq!(
            demands.of(&llava, start),
            Demand {
                in_flight: 2,
                waiting: 5
            }
        );
        let later = start + Duration::from_secs(10);
        let t1 = "2026-01-01T00:00:10.000000Z";
        assert!(demands.apply(&lease("two", t1, 3), later).is_empty());
        let end = start + Duration::from_secs(15);
        assert_eq!(
            demands.of(&llava, end),
            Demand {
                in_flight: 1,
                waiting: 3
            }
        );
    }
}
