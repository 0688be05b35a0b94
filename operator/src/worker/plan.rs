//! What has to be done for one worker (pure).

use crds::worker::LlavaWorker;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::life::Life;
use super::observe::Observed;
use super::{lease, pod};
use crate::step::Step;

/// What a worker's reconciliation is about to do.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What happens to the Lease.
    pub lease: Step,
    /// The Pod to create.
    pub pod: Option<Box<Pod>>,
}

/// The template cannot become a Pod.
#[derive(Debug, thiserror::Error)]
#[error("cannot build the Pod of LlavaWorker {name}: {source}")]
pub struct PlanError {
    name: String,
    source: serde_json::Error,
}

/// Decides.
///
/// # Errors
/// When the template cannot become a Pod.
pub fn plan(observed: &Observed) -> Result<Planned, PlanError> {
    let nothing = Planned {
        lease: Step::Keep,
        pod: None,
    };
    match observed.life {
        Life::Leaving | Life::Ended | Life::Unseen => return Ok(nothing),
        Life::Unborn | Life::Live => {}
    }
    let uid = observed.worker.uid().unwrap_or_default();
    let lease = lease::lease(&observed.worker);
    let lease = Step::towards(lease, observed.lease.as_deref(), &uid);
    let pod = match (observed.life, &observed.pod) {
        (Life::Unborn, None) => Some(Box::new(build(&observed.worker)?)),
        _ => None,
    };
    Ok(Planned { lease, pod })
}

fn build(worker: &LlavaWorker) -> Result<Pod, PlanError> {
    pod::pod(worker).map_err(|source| PlanError {
        name: worker.metadata.name.clone().unwrap_or_default(),
        source,
    })
}
