//! A headless Service, so that each worker has a name in DNS for whoever looks into
//! it; routers use addresses.

use crds::LlavaDeployment;
use protocol::port;
use serde_json::{Value, json};

/// The Service. It names unready workers too: people debug those.
#[must_use]
pub fn service(deployment: &LlavaDeployment) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": super::metadata(deployment),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": super::selector(deployment),
            "ports": [
                {"name": port::API_NAME, "port": port::API, "targetPort": port::API_NAME, "protocol": "TCP"},
                {"name": port::ADMIN_NAME, "port": port::ADMIN, "targetPort": port::ADMIN_NAME, "protocol": "TCP"},
            ],
        },
    })
}
