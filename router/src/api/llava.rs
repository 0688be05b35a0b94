//! The endpoints of LLaVA's controller, for its clients. What registered workers
//! over HTTP is gone: Kubernetes knows them.

use bytes::Bytes;
use protocol::llava::Status;
use serde::Serialize;

use crate::api::models::json;
use crate::dispatch::fleet::Directory;

/// What answers `/register_worker`.
pub(crate) const REGISTER_GONE: &str = "workers do not register over HTTP: apply a LlavaDeployment, \
    or start llava-router with --worker URL";
/// What answers `/receive_heart_beat`.
pub(crate) const HEART_BEAT_GONE: &str = "heartbeats do not come over HTTP: a worker renews its Lease, \
    and its readiness probe is the second witness";

#[derive(Serialize)]
struct Models {
    models: Vec<String>,
}

#[derive(Serialize)]
struct Address {
    address: String,
}

/// `/list_models`.
pub(crate) fn list_models(directory: &Directory) -> Bytes {
    let models = directory.listed.keys().cloned().collect();
    json(&Models { models })
}

/// `/worker_get_status`: the router as if it were one worker, so that it can be
/// registered with a controller of LLaVA's. Speed counts workers.
pub(crate) fn status(directory: &Directory) -> Bytes {
    let now = shell::clock::now();
    let (mut speed, mut queue) = (0, 0);
    for pool in directory.pools.values() {
        for worker in pool.view(now) {
            speed += u32::from(worker.preference.is_some());
            queue += worker.queue.count;
        }
        queue += u64::from(pool.demand().waiting);
    }
    json(&Status {
        model_names: directory.listed.keys().cloned().collect(),
        speed,
        queue_length: u32::try_from(queue).unwrap_or(u32::MAX),
    })
}

/// `/get_worker_address`: always the router's own, as the client sees it, for a
/// model that it knows; empty for others, as LLaVA does.
pub(crate) fn address(directory: &Directory, host: Option<&str>, model: &str) -> Bytes {
    let known = directory.pool(model).is_some();
    let address = host.filter(|_| known).map(|host| format!("http://{host}"));
    json(&Address {
        address: address.unwrap_or_default(),
    })
}
