//! The few questions that the start of a cluster asks its API server.

use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::error::Error;

/// A client from a kubeconfig, whatever proxy the environment names.
pub(super) async fn connect(kubeconfig: &Path) -> Result<Client, Error> {
    connect_as(kubeconfig, None).await
}

/// The same with another token than the kubeconfig's.
pub(super) async fn connect_as(kubeconfig: &Path, token: Option<&str>) -> Result<Client, Error> {
    let config = config(kubeconfig, token).await?;
    Client::try_from(config).map_err(Error::api("make a client for the API server"))
}

/// How to reach the API server of a kubeconfig, perhaps with another token.
pub(super) async fn config(kubeconfig: &Path, token: Option<&str>) -> Result<Config, Error> {
    let broken = |source| Error::Kubeconfig {
        path: kubeconfig.to_owned(),
        source: Box::new(source),
    };
    let mut read = Kubeconfig::read_from(kubeconfig).map_err(broken)?;
    let identities = read.auth_infos.iter_mut();
    if let Some(token) = token {
        for identity in identities.filter_map(|named| named.auth_info.as_mut()) {
            identity.token = Some(token.to_owned().into());
        }
    }
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .map_err(broken)?;
    config.proxy_url = None;
    Ok(config)
}

/// Whether the API server says that it is ready.
pub(super) async fn is_ready(client: &Client) -> Option<()> {
    let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
    client.request_text(request).await.ok().map(|_| ())
}

/// Whether a condition of a node is true.
pub(super) fn has_condition(node: &Node, kind: &str) -> Option<()> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == kind)?;
    (found.status == "True").then_some(())
}
