//! LlavaDeployment and LlavaWorker, installed into a cluster. Best before its
//! controllers start: Kubernetes' garbage collector looks for new kinds every 30 s
//! only, and until then nothing that belongs to one of theirs is taken away.

use std::time::Duration;

use crds::definition::definitions;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};

use super::{command::wait_for, error::Error};

const SERVED: Duration = Duration::from_secs(60);

/// Installs both kinds and waits until the API server serves and names them.
///
/// # Errors
/// When the API server refuses them.
pub async fn install_kinds(client: &Client) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions() {
        let name = definition.name_any();
        let params = PatchParams::apply("tests").force();
        api.patch(&name, &params, &Patch::Apply(&definition))
            .await
            .map_err(Error::api(format!("install the kind {name}")))?;
    }
    for definition in definitions() {
        let name = definition.name_any();
        let plural = definition.spec.names.plural;
        let group = format!(
            "{}/{}",
            definition.spec.group, definition.spec.versions[0].name
        );
        let served = async || {
            let conditions = api.get(&name).await.ok()?.status?.conditions?;
            let mut conditions = conditions.iter();
            conditions.find(|one| one.type_ == "Established" && one.status == "True")?;
            let named = client.list_api_group_resources(&group).await.ok()?;
            let mut named = named.resources.iter();
            named.find(|resource| resource.name == plural).map(|_| ())
        };
        wait_for(&format!("{name} to be served"), SERVED, served).await?;
    }
    Ok(())
}
