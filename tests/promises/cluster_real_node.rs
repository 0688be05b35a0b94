//! Real containers: names, Services, volumes out of images, GPUs as a resource,
//! and policies that keep Pods apart.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{
    Api,
    api::{LogParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    Cluster,
    cluster::{REAL_NODE, wait_for},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(60);

/// The small program that comes with the cluster, in a Pod that the restricted
/// standard takes.
fn probe(name: &str, words: &[&str]) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "probe",
                "image": "llava.dev/probe:1",
                "imagePullPolicy": "Never",
                "args": words,
                "securityContext": {
                    "runAsNonRoot": true,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
        },
    })
}

/// A cluster with a Pod `web` that answers with its name behind a Service `web`.
struct Scene {
    cluster: Cluster,
    pods: Api<Pod>,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::control_plane().with_real_node().await?;
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        cluster
            .kubectl(&["label", "namespace", "default", restricted])
            .await?;
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        Ok(Self { cluster, pods })
    }

    async fn with_web() -> anyhow::Result<Self> {
        let scene = Self::new().await?;
        let mut web = probe("web", &["serve", ":8000"]);
        web["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1});
        scene.create(web).await?;
        let services: Api<Service> = Api::default_namespaced(scene.cluster.client());
        let service = json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
        });
        services
            .create(&PostParams::default(), &serde_json::from_value(service)?)
            .await?;
        scene
            .cluster
            .kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])
            .await?;
        Ok(scene)
    }

    async fn create(&self, pod: Value) -> anyhow::Result<()> {
        self.pods
            .create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        Ok(())
    }

    /// How a Pod ended, and what it printed.
    async fn outcome(&self, name: &str) -> anyhow::Result<(String, String)> {
        let what = format!("the end of pod {name}");
        let phase = wait_for(&what, SOON, async || {
            let phase = self.pods.get(name).await.ok()?.status?.phase?;
            matches!(phase.as_str(), "Succeeded" | "Failed").then_some(phase)
        });
        let phase = phase.await?;
        Ok((phase, self.pods.logs(name, &LogParams::default()).await?))
    }

    /// Asks the Service for its answer from a Pod of this name.
    async fn ask(&self, name: &str) -> anyhow::Result<(String, String)> {
        self.create(probe(name, &["get", "http://web/"])).await?;
        self.outcome(name).await
    }
}

async fn get(address: &str, port: u16) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect((address, port)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_pod_answers_through_the_name_of_its_service() -> anyhow::Result<()> {
    let scene = Scene::with_web().await?;
    assert_eq!(
        scene.ask("client").await?,
        ("Succeeded".into(), "web".into())
    );

    let pod = scene.pods.get("web").await?;
    let address = pod
        .status
        .and_then(|status| status.pod_ip)
        .unwrap_or_default();
    assert!(
        get(&address, 8000).await?.ends_with("web"),
        "a test reaches the pod itself"
    );
    let services: Api<Service> = Api::default_namespaced(scene.cluster.client());
    let service = services.get("web").await?;
    let address = service
        .spec
        .and_then(|spec| spec.cluster_ip)
        .unwrap_or_default();
    assert!(get(&address, 80).await?.ends_with("web"), "and the service");

    let said = scene
        .cluster
        .kubectl(&["exec", "web", "--", "/probe", "list", "/"])
        .await?;
    assert!(said.contains("probe"), "kubectl exec works: {said}");
    Ok(())
}

#[tokio::test]
async fn an_image_and_a_folder_of_the_node_are_mounted_as_volumes() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut pod = probe("reader", &["list", "/model"]);
    pod["spec"]["volumes"] = json!([{
        "name": "model",
        "image": {"reference": "llava.dev/coredns:1", "pullPolicy": "Never"},
    }]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "model", "mountPath": "/model", "readOnly": true}]);
    scene.create(pod.clone()).await?;
    assert_eq!(
        scene.outcome("reader").await?,
        ("Succeeded".into(), "coredns\n".into())
    );

    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    std::fs::write(folder.path().join("weights"), "")?;
    // The restricted standard takes no hostPath.
    scene
        .cluster
        .kubectl(&["create", "namespace", "open"])
        .await?;
    let scene = Scene {
        pods: Api::namespaced(scene.cluster.client(), "open"),
        ..scene
    };
    pod["spec"]["volumes"] =
        json!([{"name": "model", "hostPath": {"path": folder.path(), "type": "Directory"}}]);
    wait_for("the namespace's account", SOON, async || {
        scene.create(pod.clone()).await.ok()
    })
    .await?;
    assert_eq!(
        scene.outcome("reader").await?,
        ("Succeeded".into(), "weights\n".into())
    );
    Ok(())
}

#[tokio::test]
async fn a_gpu_is_given_to_one_pod_at_a_time() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let nodes: Api<Node> = Api::all(scene.cluster.client());
    let patch = Patch::Merge(json!({"status": {"capacity": {"nvidia.com/gpu": "1"}}}));
    nodes
        .patch_status(REAL_NODE, &PatchParams::default(), &patch)
        .await?;
    for name in ["first", "second"] {
        let mut pod = probe(name, &[]);
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": 1}});
        scene.create(pod).await?;
        if name == "first" {
            scene
                .cluster
                .kubectl(&[
                    "wait",
                    "--for=condition=Ready",
                    "pod/first",
                    "--timeout=60s",
                ])
                .await?;
        }
    }
    let said = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu";
    wait_for("the second pod's refusal", SOON, async || {
        let status = scene.pods.get("second").await.ok()?.status?;
        let mut conditions = status.conditions?.into_iter();
        conditions.find(|condition| {
            condition
                .message
                .as_deref()
                .is_some_and(|message| message.starts_with(said))
        })
    })
    .await?;
    Ok(())
}

/// A Pod that stays, and asks when it is told to: a policy takes hold of a Pod a
/// moment after its start, when its address is known.
async fn asker(scene: &Scene, name: &str) -> anyhow::Result<String> {
    scene.create(probe(name, &[])).await?;
    let ready = format!("pod/{name}");
    scene
        .cluster
        .kubectl(&["wait", "--for=condition=Ready", &ready, "--timeout=60s"])
        .await?;
    let status = scene.pods.get(name).await?.status.unwrap_or_default();
    Ok(status.pod_ip.unwrap_or_default())
}

async fn enforced(scene: &Scene, rule: &str) -> anyhow::Result<()> {
    wait_for(&format!("the rule {rule}"), SOON, async || {
        let rules = scene
            .cluster
            .inside_output("iptables-save", &[])
            .await
            .ok()?;
        rules.contains(rule).then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_network_policy_keeps_out_whom_it_does_not_name() -> anyhow::Result<()> {
    let scene = Scene::with_web().await?;
    asker(&scene, "stranger").await?;
    let friend = asker(&scene, "friend").await?;
    let ask = async |name: &str| {
        let words = ["exec", name, "--", "/probe", "get", "http://web/"];
        scene.cluster.kubectl(&words).await
    };
    assert_eq!(
        ask("stranger").await?,
        "web",
        "without a policy all may ask"
    );

    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "friend"}}}],
                "ports": [{"port": 8000}],
            }],
        },
    });
    scene.cluster.apply(&policy.to_string()).await?;
    enforced(
        &scene,
        &format!("-s {friend}/32 -p tcp -m tcp --dport 8000"),
    )
    .await?;
    assert!(ask("stranger").await.is_err());
    assert_eq!(ask("friend").await?, "web");

    let sealed = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "sealed", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "friend"}},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
                "ports": [{"port": 1053, "protocol": "UDP"}],
            }],
        },
    });
    scene.cluster.apply(&sealed.to_string()).await?;
    enforced(&scene, "-A NP-EG").await?;
    let said = ask("friend")
        .await
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        said.contains("connect"),
        "it may look up names and nothing else: {said}"
    );
    Ok(())
}
