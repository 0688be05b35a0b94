//! The rights that the chart gives: enough for the operator to do its work, and
//! no others.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use crds::{LlavaDeployment, LlavaWorker};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use llava_operator::args::Args;
use llava_operator::metrics::Metrics;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::json;
use shell::readiness::Readiness;
use tests::Cluster;
use tests::cluster::{Error, wait_for};
use tests::install::llava_shapes;
use tests::release::{install, token};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "llava-system";
const RENEWAL: &str = r#"--patch={"spec":{"leaseDurationSeconds":15}}"#;
const SOON: Duration = Duration::from_secs(30);

/// Whether a ServiceAccount of the chart may do something, as RBAC sees it.
async fn may(cluster: &Cluster, who: &str, what: &str) -> anyhow::Result<bool> {
    let account = format!("--as=system:serviceaccount:{who}");
    let words: Vec<_> = ["auth", "can-i", &account]
        .into_iter()
        .chain(what.split(' '))
        .collect();
    // `no` comes with another exit status than 0.
    match cluster.kubectl(&words).await {
        Ok(answer) => Ok(answer.trim() == "yes"),
        Err(Error::Command { output, .. }) if output.lines().any(|line| line == "no") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn a_release_for_one_namespace_has_no_right_beyond_it() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    install(&cluster, "team-a", &["--set", "scope=Namespace"]).await?;
    for who in ["team-a:llava-operator", "team-a:llava-router"] {
        for what in [
            "list pods",
            "watch llavadeployments.llava.dev",
            "watch leases",
        ] {
            ensure!(
                may(&cluster, who, &format!("{what} -n team-a")).await?,
                "{who} may not {what}"
            );
            ensure!(
                !may(&cluster, who, &format!("{what} -n default")).await?,
                "{who} may {what} elsewhere"
            );
        }
    }
    let roles = [
        "get",
        "clusterroles,clusterrolebindings",
        "-l",
        "app.kubernetes.io/instance=llava",
        "-o",
        "name",
    ];
    assert_eq!(cluster.kubectl(&roles).await?, "");
    Ok(())
}

#[tokio::test]
async fn nobody_in_a_release_reads_secrets_or_enters_pods() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    install(&cluster, NAMESPACE, &[]).await?;
    for who in ["llava-system:llava-operator", "llava-system:llava-router"] {
        ensure!(
            may(&cluster, who, "watch leases -n default").await?,
            "{who} may not watch Leases"
        );
        for what in [
            "get secrets",
            "create pods --subresource=exec",
            "create pods --subresource=portforward",
            "get pods --subresource=log",
            "create deployments.apps",
            "get nodes",
            "create clusterrolebindings",
            "impersonate users",
            "update llavadeployments.llava.dev",
        ] {
            ensure!(
                !may(&cluster, who, &format!("{what} -n default")).await?,
                "{who} may {what}"
            );
        }
    }
    for what in ["create leases", "patch leases"] {
        let router = "llava-system:llava-router";
        ensure!(
            may(&cluster, router, &format!("{what} -n {NAMESPACE}")).await?,
            "the router may not {what}"
        );
    }
    for what in [
        "create pods",
        "delete pods",
        "create leases",
        "patch llavaworkers.llava.dev",
    ] {
        let router = "llava-system:llava-router";
        ensure!(
            !may(&cluster, router, &format!("{what} -n default")).await?,
            "the router may {what}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_token_writes_no_lease_but_that_of_its_pod() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    install(&cluster, NAMESPACE, &[]).await?;
    // As the operator does for a deployment: a Role over the Leases of its workers.
    let [account, mine, sibling] = ["shapes-workers", "shapes-abc-0", "shapes-abc-1"];
    cluster
        .kubectl(&["create", "serviceaccount", account])
        .await?;
    for lease in [mine, sibling] {
        let lease = serde_json::from_value(serde_json::json!({
            "metadata": {"name": lease, "labels": {crds::name::label::WORKER: lease}},
        }))?;
        let leases: Api<Lease> = Api::default_namespaced(cluster.client());
        leases.create(&PostParams::default(), &lease).await?;
    }
    let role = [
        "create",
        "role",
        "shapes",
        "--verb=get,update,patch",
        "--resource=leases",
    ];
    let names = [mine, sibling].map(|name| format!("--resource-name={name}"));
    cluster
        .kubectl(&[&role[..], &[&names[0], &names[1]]].concat())
        .await?;
    let subject = format!("--serviceaccount=default:{account}");
    cluster
        .kubectl(&["create", "rolebinding", "shapes", "--role=shapes", &subject])
        .await?;

    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": mine},
        "spec": {"serviceAccountName": account, "containers": [{"name": "worker", "image": "none"}]},
    }))?;
    let pod = pods.create(&PostParams::default(), &pod).await?;
    let bound = token(&cluster, "default", account, Some(&pod)).await?;
    let loose = token(&cluster, "default", account, None).await?;
    // A policy takes a moment to come into force.
    wait_for("the policy", SOON, async || {
        renew(&cluster, &bound, sibling).await.err()
    })
    .await?;
    renew(&cluster, &bound, mine).await?;
    for (token, lease) in [(&bound, sibling), (&loose, mine)] {
        let refusal = renew(&cluster, token, lease).await;
        let refusal = refusal
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        ensure!(
            refusal.contains(&format!("may not write Lease {lease}")),
            "{lease}: {refusal}"
        );
    }
    // The operator and people still may.
    let operator = "--as=system:serviceaccount:llava-system:llava-operator";
    for who in [operator, "--as-group=system:masters"] {
        let who = if who == operator {
            vec![who]
        } else {
            vec!["--as=somebody", who]
        };
        let patch = ["patch", "lease", sibling, "--type=merge", RENEWAL];
        cluster.kubectl(&[&who[..], &patch].concat()).await?;
    }
    Ok(())
}

/// Renews a Lease as a worker does, by its token alone.
async fn renew(cluster: &Cluster, token: &str, lease: &str) -> Result<String, Error> {
    let token = format!("--token={token}");
    cluster
        .kubectl(&[&token, "patch", "lease", lease, "--type=merge", RENEWAL])
        .await
}

#[tokio::test]
async fn the_operator_works_with_the_rights_of_the_chart_in_the_whole_cluster() -> anyhow::Result<()>
{
    // It may read StorageClasses here, so it tells that one is missing.
    operator_works(&[], "default", "StorageClassMissing").await
}

#[tokio::test]
async fn the_operator_works_with_the_rights_of_the_chart_in_one_namespace() -> anyhow::Result<()> {
    operator_works(
        &["--set", "scope=Namespace"],
        NAMESPACE,
        "VolumeClaimPending",
    )
    .await
}

/// Runs the operator as the chart would, with the token of its ServiceAccount,
/// and takes it through all that it writes and reads.
async fn operator_works(settings: &[&str], namespace: &str, cause: &str) -> anyhow::Result<()> {
    let cluster = Cluster::control_plane()
        .with_kinds()
        .with_fake_nodes(1)
        .await?;
    let idle = [
        "--set",
        "operator.replicas=0,router.replicas=0,crds.install=false",
    ];
    install(&cluster, NAMESPACE, &[&idle[..], settings].concat()).await?;
    let account = token(&cluster, NAMESPACE, "llava-operator", None).await?;
    let client = cluster.client_as(&account).await?;
    let args = arguments(&cluster).await?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (readiness, stop) = (Readiness::default(), CancellationToken::new());
    let candidate = args.candidate(NAMESPACE);
    let settings = args.settings(NAMESPACE);
    let running = llava_operator::run::run(client, settings, candidate, &readiness, metrics, stop);
    tokio::select! {
        ended = running => ended.context("the operator ended")?,
        done = work(&cluster, namespace, cause) => done?,
    }
    let mut shown = String::new();
    encode(&mut shown, &registry)?;
    let failed: Vec<_> = shown
        .lines()
        .filter(|line| line.starts_with("llava_operator_write_errors_total"))
        .collect();
    ensure!(failed.is_empty(), "refused writes: {failed:?}");
    Ok(())
}

/// The command line of the installed operator, as its container gets it.
async fn arguments(cluster: &Cluster) -> anyhow::Result<Args> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client(), NAMESPACE);
    let deployment = deployments.get("llava-operator").await?;
    let pod = deployment.spec.and_then(|spec| spec.template.spec);
    let container = pod.and_then(|pod| pod.containers.into_iter().next());
    let words = container
        .and_then(|container| container.args)
        .unwrap_or_default();
    let words = words
        .iter()
        .map(|word| word.replace("$(POD_NAMESPACE)", NAMESPACE));
    Ok(Args::try_parse_from(
        ["llava-operator".to_owned()].into_iter().chain(words),
    )?)
}

/// Creates, scales down, and breaks in a way whose cause has to be looked for.
async fn work(cluster: &Cluster, namespace: &str, cause: &str) -> anyhow::Result<()> {
    let deployments: Api<LlavaDeployment> = Api::namespaced(cluster.client(), namespace);
    let workers: Api<LlavaWorker> = Api::namespaced(cluster.client(), namespace);
    let pods: Api<Pod> = Api::namespaced(cluster.client(), namespace);
    let created = PostParams::default();
    deployments.create(&created, &llava_shapes()?).await?;
    let count = async |wanted| {
        let pods = pods.list(&ListParams::default()).await.ok()?.items.len();
        let workers = workers.list(&ListParams::default()).await.ok()?.items.len();
        (pods == wanted && workers == wanted).then_some(())
    };
    wait_for("two workers and their Pods", SOON, async || count(2).await).await?;
    let one = Patch::Merge(json!({"spec": {"replicas": 1}}));
    deployments
        .patch("llava-shapes", &PatchParams::default(), &one)
        .await?;
    wait_for("one worker and its Pod", SOON, async || count(1).await).await?;

    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client(), namespace);
    let claim = serde_json::from_value(json!({
        "metadata": {"name": "weights"},
        "spec": {
            "storageClassName": "no-such-class",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }))?;
    claims.create(&created, &claim).await?;
    let broken = serde_json::from_value(json!({
        "metadata": {"name": "broken"},
        "spec": {"model": {"source": {"persistentVolumeClaim": {"claimName": "weights"}}}},
    }))?;
    deployments.create(&created, &broken).await?;
    let mut seen = Vec::new();
    let told = wait_for("the cause of the missing volume", SOON, async || {
        let list = workers.list(&ListParams::default()).await.ok()?;
        seen = list
            .into_iter()
            .filter_map(|worker| worker.status?.reason)
            .collect();
        seen.iter().any(|reason| reason == cause).then_some(())
    });
    let told = told.await;
    told.with_context(|| format!("instead of {cause}: {seen:?}"))?;
    wait_for("an Event about the worker", SOON, async || {
        let words = ["get", "events", "-n", namespace, "-o", "name"];
        let about = ["--field-selector", "involvedObject.kind=LlavaWorker"];
        let events = cluster.kubectl(&[&words[..], &about].concat()).await.ok()?;
        (!events.is_empty()).then_some(())
    })
    .await?;
    Ok(())
}
