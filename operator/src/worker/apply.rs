//! Carries out a worker's plan (client).

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::plan::Planned;
use crate::effects::{EffectError, Effects};
use crate::expectations::Expected;
use crate::key::Key;
use crate::world::World;

/// What a worker's reconciliation did.
#[derive(Debug)]
pub struct Applied {
    /// The Pod that was created.
    pub pod: Option<Pod>,
    /// What stopped it.
    pub error: Option<EffectError>,
}

/// Acts. The Lease comes first: the worker's token may renew it but not create it.
pub async fn apply(planned: Planned, key: &Key, world: &World, effects: &Effects) -> Applied {
    let Planned { lease, pod } = planned;
    match steps(lease, pod, key, world, effects).await {
        Ok(pod) => Applied { pod, error: None },
        Err(error) => Applied {
            pod: None,
            error: Some(error),
        },
    }
}

async fn steps(
    lease: Option<serde_json::Value>,
    pod: Option<Box<Pod>>,
    key: &Key,
    world: &World,
    effects: &Effects,
) -> Result<Option<Pod>, EffectError> {
    if let Some(lease) = lease {
        effects.apply::<Lease>(key, &lease).await?;
    }
    let Some(pod) = pod else {
        return Ok(None);
    };
    match effects.create(&*pod).await {
        Ok(created) => {
            let uid = created.uid().unwrap_or_default();
            let now = shell::clock::now();
            world
                .pod_writes
                .wrote(key, key.clone(), &uid, Expected::Created, now);
            Ok(Some(created))
        }
        // Ours by an answer that was lost, or somebody else's: the cache will tell.
        Err(error) if error.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}
