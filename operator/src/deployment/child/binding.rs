//! Gives the Role to the workers' ServiceAccounts: the operator's or a user's own,
//! and while one replaces the other both, or the old workers could no longer renew
//! their Leases.

use std::collections::BTreeSet;

use crds::LlavaDeployment;
use crds::name::child_name;
use serde_json::{Value, json};

/// The RoleBinding.
#[must_use]
pub fn binding(deployment: &LlavaDeployment, accounts: &BTreeSet<&str>) -> Value {
    let namespace = &deployment.metadata.namespace;
    let subject =
        |name: &&str| json!({"kind": "ServiceAccount", "name": name, "namespace": namespace});
    let subjects: Vec<_> = accounts.iter().map(subject).collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": super::metadata(deployment),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": child_name(deployment.metadata.name.as_deref().unwrap_or_default()),
        },
        "subjects": subjects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::check::tests::deployment;

    #[test]
    fn every_account_that_a_worker_has_may_renew_leases() {
        let source = json!({"http": {"url": "https://models.example/llava.tar"}});
        let deployment = deployment(&json!({"model": {"source": source}}));
        let both = BTreeSet::from(["llava-workers", "cloud"]);
        let binding = binding(&deployment, &both);
        let name = |index: usize| binding["subjects"][index]["name"].as_str();
        assert_eq!((name(0), name(1)), (Some("cloud"), Some("llava-workers")));
        assert_eq!(binding["subjects"][0]["namespace"], "ns");
    }
}
