//! The worker's own Lease: renewed every few seconds with the load, and at once
//! when the phase changes. Nothing that happens to the API server or the Lease
//! ever touches serving; the next renewal tries again.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Config};
use protocol::load::{LEASE_ANNOTATION, LoadReport, Phase};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::status::Status;

/// Between two renewals.
const EVERY: Duration = Duration::from_secs(5);
/// For one attempt; a hanging API server must not delay the next one.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Which Lease, and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaseIdentity {
    name: String,
    namespace: String,
    holder: String,
}

/// The Lease cannot be found out.
#[derive(Debug, thiserror::Error)]
#[error("--lease needs the environment variable {0}, which the downward API fills")]
pub struct MissingVariable(&'static str);

impl LeaseIdentity {
    /// Takes name, namespace and holder from `POD_NAME`, `POD_NAMESPACE` and `POD_UID`.
    ///
    /// # Errors
    /// Names the variable that is missing.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, MissingVariable> {
        let need = |name: &'static str| {
            variable(name)
                .filter(|value| !value.is_empty())
                .ok_or(MissingVariable(name))
        };
        Ok(Self {
            name: need("POD_NAME")?,
            namespace: need("POD_NAMESPACE")?,
            holder: need("POD_UID")?,
        })
    }
}

/// Renews the Lease until `stop`; `told` has the phase that it says.
pub(super) async fn renew(
    identity: LeaseIdentity,
    status: Status,
    told: watch::Sender<Option<Phase>>,
    stop: CancellationToken,
) {
    let mut phases = status.phases();
    let mut client = None;
    let mut failures = 0u32;
    loop {
        phases.mark_unchanged();
        let load = status.load();
        let attempt = tokio::time::timeout(TIMEOUT, attempt(&mut client, &identity, &load)).await;
        match attempt.unwrap_or_else(|_| Err("no answer from the API server".to_owned())) {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(
                        lease = identity.name,
                        failures,
                        "the Lease is renewed again"
                    );
                }
                failures = 0;
                told.send_replace(Some(load.phase));
            }
            Err(problem) => {
                failures += 1;
                // Certificates and addresses may have changed: begin afresh next time.
                client = None;
                if failures.is_power_of_two() {
                    tracing::warn!(
                        lease = identity.name,
                        failures,
                        problem,
                        "cannot renew the Lease; serving goes on"
                    );
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
            changed = phases.changed() => if changed.is_err() { return },
        }
    }
}

async fn attempt(
    client: &mut Option<Client>,
    identity: &LeaseIdentity,
    load: &LoadReport,
) -> Result<(), String> {
    let connected = match client.take() {
        Some(client) => client,
        None => {
            let config = Config::infer().await.map_err(|error| error.to_string())?;
            Client::try_from(config).map_err(|error| error.to_string())?
        }
    };
    let leases: Api<Lease> = Api::namespaced(connected.clone(), &identity.namespace);
    let patch = Patch::Merge(patch(identity, load));
    leases
        .patch(&identity.name, &PatchParams::default(), &patch)
        .await
        .map_err(|error| error.to_string())?;
    *client = Some(connected);
    Ok(())
}

fn patch(identity: &LeaseIdentity, load: &LoadReport) -> Value {
    let now = i64::try_from(load.captured_at_ms).unwrap_or(i64::MAX);
    // The API server wants microseconds.
    let now = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
    json!({
        "metadata": { "annotations": { LEASE_ANNOTATION: serde_json::to_string(load).unwrap_or_default() } },
        "spec": {
            "holderIdentity": identity.holder,
            "renewTime": format!("{now:.6}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> LeaseIdentity {
        LeaseIdentity::read(|name| Some(format!("the-{name}"))).unwrap()
    }

    #[test]
    fn a_renewal_changes_time_holder_and_load_and_nothing_else() {
        let load = LoadReport {
            captured_at_ms: 1_700_000_000_123,
            ..LoadReport::default()
        };
        let patch = patch(&identity(), &load);
        assert_eq!(patch["spec"]["renewTime"], "2023-11-14T22:13:20.123000Z");
        assert_eq!(patch["spec"]["holderIdentity"], "the-POD_UID");
        let annotation = patch["metadata"]["annotations"]["llava.dev/load"]
            .as_str()
            .unwrap();
        assert_eq!(
            serde_json::from_str::<LoadReport>(annotation).unwrap(),
            load
        );
        serde_json::from_value::<Lease>(patch).unwrap();
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error =
            LeaseIdentity::read(|name| (name != "POD_UID").then(|| "x".to_owned())).unwrap_err();
        assert!(error.to_string().contains("POD_UID"));
    }
}
