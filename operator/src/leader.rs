//! Leader election on a Lease. What others do with the answer is judged at the
//! moment of use: [`Claim::rest`] compares the clock with the end of the claim, and
//! no call that writes is waited for beyond it, so a process that was frozen or cut
//! off stops writing by itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crds::name::FIELD_MANAGER;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::now::Now;

/// How long others must see no renewal before they take over.
const DURATION: Duration = Duration::from_secs(15);
/// How long a renewal lets its holder act: less, so that two never do.
const CLAIM: Duration = Duration::from_secs(10);
/// How often a holder renews and a candidate looks.
const PERIOD: Duration = Duration::from_secs(2);

/// The right to write, shared by everything that does.
#[derive(Clone, Debug)]
pub struct Claim {
    until: Arc<Mutex<Option<Instant>>>,
    always: bool,
}

impl Claim {
    /// A claim that always holds: for a process that is alone by design.
    #[must_use]
    pub fn always() -> Self {
        Self {
            until: Arc::default(),
            always: true,
        }
    }

    /// A claim that nobody has won yet.
    #[must_use]
    pub fn none() -> Self {
        Self {
            until: Arc::default(),
            always: false,
        }
    }

    /// Whether writing is allowed at `now`.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.rest(now).is_some()
    }

    /// For how long writing is allowed from `now` on, if it is.
    #[must_use]
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        if self.always {
            return Some(Duration::MAX);
        }
        let rest = (*self.lock())?.saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }

    pub(crate) fn extend(&self, until: Instant) {
        *self.lock() = Some(until);
    }

    fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Lease and who wants it.
#[derive(Debug)]
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    claim: Claim,
    /// The holder and renewal last seen, and when by our own clock.
    seen: Option<(String, Option<MicroTime>, Instant)>,
}

/// What a look at the Lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// We hold it.
    Leading,
    /// Somebody else does.
    Following,
}

impl Election {
    /// Takes part under an identity that no other process has.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, claim: Claim) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            claim,
            seen: None,
        }
    }

    /// Returns once the Lease is ours. `heard` is called at the first answer of
    /// the API server, whatever it is.
    pub async fn win(&mut self, mut heard: impl FnMut()) {
        loop {
            match self.attempt().await {
                Ok(standing) => {
                    heard();
                    if standing == Standing::Leading {
                        tracing::info!(lease = self.name, identity = self.identity, "leading");
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "cannot look at the leader's lease");
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews until the claim is lost; then the process has to end, since its
    /// caches no longer entitle it to anything.
    pub async fn keep(&mut self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            match self.attempt().await {
                Ok(Standing::Leading) => {}
                Ok(Standing::Following) => {
                    self.claim.end();
                    return;
                }
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "cannot renew the leader's lease");
                    if !self.claim.holds(shell::clock::now()) {
                        return;
                    }
                }
            }
        }
    }

    /// Gives the Lease back, so that the next leader need not wait.
    pub async fn release(&mut self) {
        if !self.claim.holds(shell::clock::now()) {
            return;
        }
        self.claim.end();
        let free = json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(free));
        let patch = self.api.patch(&self.name, &params, &patch);
        if !matches!(tokio::time::timeout(PERIOD, patch).await, Ok(Ok(_))) {
            tracing::debug!(lease = self.name, "the leader's lease runs out by itself");
        }
    }

    async fn attempt(&mut self) -> Result<Standing, AttemptError> {
        let asked = shell::clock::now();
        let standing = tokio::time::timeout(PERIOD * 2, self.contend(asked))
            .await
            .map_err(|_| AttemptError::Timeout)??;
        if standing == Standing::Leading {
            self.claim.extend(asked + CLAIM);
        }
        Ok(standing)
    }

    async fn contend(&mut self, now: Instant) -> Result<Standing, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let lease = json!({
                "metadata": {"name": self.name, "labels": {crds::name::label::NAME: FIELD_MANAGER}},
                "spec": self.wish(0),
            });
            let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
            return settled(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or_default();
        let transitions = if holder == self.identity {
            transitions
        } else {
            if !holder.is_empty() && !self.expired(&holder, spec.renew_time, now) {
                return Ok(Standing::Following);
            }
            transitions.saturating_add(1)
        };
        // The resource version makes the API server refuse all but one candidate.
        let patch = json!({
            "metadata": {"resourceVersion": lease.resource_version()},
            "spec": self.wish(transitions),
        });
        let patch = Patch::Merge(patch);
        settled(
            self.api
                .patch(&self.name, &PatchParams::default(), &patch)
                .await,
        )
    }

    /// Whether the holder was silent for the whole duration, by our own clock.
    fn expired(&mut self, holder: &str, renewed: Option<MicroTime>, now: Instant) -> bool {
        match &self.seen {
            Some((who, when, since)) if who == holder && *when == renewed => {
                now.saturating_duration_since(*since) >= DURATION
            }
            _ => {
                self.seen = Some((holder.to_owned(), renewed, now));
                false
            }
        }
    }

    fn wish(&self, transitions: i32) -> serde_json::Value {
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION.as_secs(),
            "leaseTransitions": transitions,
            "renewTime": MicroTime(Now::read().wall),
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no answer within {} s", PERIOD.as_secs() * 2)]
    Timeout,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// A lost race is an answer, not an error.
fn settled(result: Result<Lease, kube::Error>) -> Result<Standing, kube::Error> {
    match result {
        Ok(_) => Ok(Standing::Leading),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
            Ok(Standing::Following)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_ends_by_the_clock_without_anybody_ending_it() {
        let claim = Claim::none();
        let now = shell::clock::now();
        assert!(!claim.holds(now));
        claim.extend(now + CLAIM);
        assert!(claim.holds(now));
        assert_eq!(claim.rest(now + PERIOD), Some(CLAIM - PERIOD));
        assert!(!claim.holds(now + CLAIM));
    }
}
