//! The operator may die before and after every single write: the end is the one
//! of an undisturbed run, no object was made or removed more often, and at every
//! revision of the cluster the bounds of the rollout held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::name::label;
use crds::{LlavaDeployment, LlavaWorker};
use futures::future::try_join_all;
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tests::Cluster;
use tests::cluster::wait_for;
use tests::fault::{Fate, Faults};
use tests::history::{Deed, Event, History, kind};
use tests::operator::Operator;

/// Until a workload has reached its end, deaths included.
const SOON: Duration = Duration::from_secs(60);
/// Longer than the operator lets events gather,
const MOMENT: Duration = Duration::from_millis(400);
/// and longer than it lets a status wait that changes in passing.
const REST: Duration = Duration::from_millis(1500);
/// Workers that every workload begins or ends with.
const REPLICAS: usize = 2;
/// Runs at once.
const PARALLEL: usize = 6;
/// Runs for one death. A write of the clean run need not come in every other: steps of a status
/// that follow each other quickly are one write, and how quickly they do is the machine's business.
const TRIES: usize = 3;
/// So many planned deaths may come in none of their runs,
const FEW: usize = 2;
/// or one in so many, if that is more.
const ONE_IN: usize = 10;

/// Something that makes the operator write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    Create,
    ScaleUp,
    ScaleDown,
    Rollout,
    WorkerFailure,
}

impl Workload {
    /// Workers at the end.
    fn replicas(self) -> usize {
        match self {
            Self::ScaleUp => REPLICAS + 2,
            Self::ScaleDown => REPLICAS - 1,
            Self::Create | Self::Rollout | Self::WorkerFailure => REPLICAS,
        }
    }

    /// The most workers that may live at once, and the fewest that may answer by our doing.
    fn bounds(self) -> (usize, usize) {
        match self {
            Self::Create => (REPLICAS, 0),
            Self::ScaleUp => (REPLICAS + 2, REPLICAS),
            Self::ScaleDown => (REPLICAS, REPLICAS - 1),
            Self::Rollout => (REPLICAS + 1, REPLICAS),
            // One of two has died by itself, and its object stays for a moment.
            Self::WorkerFailure => (REPLICAS + 1, REPLICAS - 1),
        }
    }
}

/// What a run came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    lives: BTreeMap<String, (usize, usize)>,
    end: BTreeMap<String, Value>,
}

/// A run and how it went.
#[derive(Debug)]
struct Course {
    outcome: Outcome,
    /// Writes of the operator that was there at the end.
    writes: usize,
    /// Whether the operator died of its faults.
    died: bool,
}

struct Run<'a> {
    cluster: &'a Cluster,
    namespace: String,
    workload: Workload,
}

impl Run<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    /// Makes what the workload begins with, except that nobody serves it yet.
    async fn found(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client());
        let namespace = serde_json::from_value(json!({"metadata": {"name": self.namespace}}))?;
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        if self.workload != Workload::Create {
            self.create().await?;
        }
        Ok(())
    }

    /// Runs the workload against an operator with these faults; a dead operator is followed by a healthy one.
    async fn go(&self, faults: Faults) -> anyhow::Result<Course> {
        let kinds = [
            kind::<LlavaWorker>(),
            kind::<Pod>(),
            kind::<Lease>(),
            kind::<Service>(),
            kind::<ServiceAccount>(),
            kind::<Role>(),
            kind::<RoleBinding>(),
            kind::<PodDisruptionBudget>(),
        ];
        let before = self.members().await?;
        let history = History::record(&self.cluster.client(), &self.namespace, &kinds).await?;
        let operator = Operator::start(self.cluster, Some(&self.namespace), faults.clone()).await?;
        self.disturb().await?;
        let settled = tokio::select! {
            settled = self.settle() => Some(settled),
            () = faults.killed() => None,
        };
        let died = settled.is_none();
        let operator = match settled {
            Some(settled) => {
                settled?;
                operator
            }
            None => {
                operator.kill().await;
                let healthy =
                    Operator::start(self.cluster, Some(&self.namespace), Faults::none()).await?;
                self.settle().await?;
                healthy
            }
        };
        let writes = operator.faults.writes().len();
        operator.kill().await;
        history.caught_up().await?;
        self.check_bounds(&before, &history.events())?;
        let mut lives = history.lives();
        // The default account and the like are Kubernetes' own.
        lives.retain(|name, _| name.contains("llava"));
        let end = self.end().await?;
        Ok(Course {
            outcome: Outcome { lives, end },
            writes,
            died,
        })
    }

    async fn create(&self) -> anyhow::Result<()> {
        let deployment = serde_json::from_value(json!({
            "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment",
            "metadata": {"name": "llava"},
            "spec": {
                "model": {"source": {"huggingFace": {"repo": "llava-hf/llava-1.5-7b-hf"}}},
                "replicas": REPLICAS,
                "drain": {"timeout": "1s"},
            },
        }))?;
        self.api::<LlavaDeployment>()
            .create(&PostParams::default(), &deployment)
            .await?;
        Ok(())
    }

    async fn disturb(&self) -> anyhow::Result<()> {
        let patch = async |change: Value| {
            let deployments = self.api::<LlavaDeployment>();
            deployments
                .patch("llava", &PatchParams::default(), &Patch::Merge(change))
                .await
        };
        match self.workload {
            Workload::Create => self.create().await?,
            Workload::ScaleUp | Workload::ScaleDown => {
                patch(json!({"spec": {"replicas": self.workload.replicas()}})).await?;
            }
            Workload::Rollout => {
                patch(json!({"spec": {"image": "llava-worker:next"}})).await?;
            }
            Workload::WorkerFailure => {
                let pods = self.api::<Pod>();
                let names = pods.list(&ListParams::default()).await?.items;
                let victim = names
                    .iter()
                    .map(ResourceExt::name_any)
                    .min()
                    .unwrap_or_default();
                let fault =
                    json!({"metadata": {"annotations": {"fake.llava.dev/fault": "failed"}}});
                pods.patch(&victim, &PatchParams::default(), &Patch::Merge(fault))
                    .await?;
            }
        }
        Ok(())
    }

    /// Waits until spec, status and objects agree, and stay so for a moment.
    async fn settle(&self) -> anyhow::Result<()> {
        self.reach(self.workload.replicas()).await?;
        tokio::time::sleep(MOMENT).await;
        self.reach(self.workload.replicas()).await
    }

    /// Waits until spec, status and objects agree.
    async fn reach(&self, replicas: usize) -> anyhow::Result<()> {
        let wish = i32::try_from(replicas)?;
        let failing =
            self.workload == Workload::WorkerFailure && replicas == self.workload.replicas();
        let agree = async || {
            let deployment = self.api::<LlavaDeployment>().get("llava").await.ok()?;
            let status = deployment.status?;
            let rolled = self.workload != Workload::Rollout
                || deployment.spec.pod.image.is_none()
                || status.image == deployment.spec.pod.image;
            let told = status.observed_generation == deployment.metadata.generation
                && status.summary.as_deref() == Some("Ready")
                && status.available_replicas == wish
                && status.replicas == wish
                && status.updated_replicas == wish
                && rolled;
            if !told {
                return None;
            }
            let all = ListParams::default();
            let workers = self.api::<LlavaWorker>().list(&all).await.ok()?;
            let pods = self.api::<Pod>().list(&all).await.ok()?;
            let leases = self.api::<Lease>().list(&all).await.ok()?;
            let revision = status.update_revision;
            let ours = |labels: &BTreeMap<String, String>| {
                labels.get(label::REVISION) == revision.as_ref()
            };
            let healthy = pods.items.iter().all(|pod| {
                let status = pod.status.as_ref();
                status.and_then(|status| status.phase.as_deref()) == Some("Running")
            });
            let good = workers.items.len() == replicas
                && workers.items.iter().all(|worker| ours(worker.labels()))
                && pods.items.len() == replicas
                && leases.items.len() == replicas
                && (healthy || !failing);
            good.then_some(())
        };
        wait_for("the workload to settle", SOON, agree).await?;
        Ok(())
    }

    /// Which workers live and which answer, before the workload.
    async fn members(&self) -> anyhow::Result<BTreeMap<String, Member>> {
        let pods = self.api::<Pod>().list(&ListParams::default()).await?;
        let lives = |name: String| {
            (
                name,
                Member {
                    lives: true,
                    answers: true,
                },
            )
        };
        Ok(pods
            .items
            .iter()
            .map(ResourceExt::name_any)
            .map(lives)
            .collect())
    }

    /// A node may fall silent and take a worker's readiness; that is nobody's
    /// write. What counts is what each beginning and each end of a worker did.
    fn check_bounds(
        &self,
        before: &BTreeMap<String, Member>,
        events: &[Event],
    ) -> anyhow::Result<()> {
        let (most, fewest) = self.workload.bounds();
        let mut members = before.clone();
        let mut trail = Vec::new();
        for event in events {
            let name = event.object.name_any();
            trail.push(format!(
                "{} {:?} {} {name}",
                event.revision, event.deed, event.kind
            ));
            let ending =
                event.deed == Deed::Deleted || event.object.metadata.deletion_timestamp.is_some();
            if event.kind == "Pod" {
                let phase = event.object.data["status"]["phase"].as_str();
                members.entry(name).or_default().answers =
                    !ending && phase == Some("Running") && is_ready(&event.object.data);
                continue;
            }
            if event.kind != "LlavaWorker" {
                continue;
            }
            let answer = |members: &BTreeMap<String, Member>| {
                members
                    .values()
                    .filter(|member| member.lives && member.answers)
                    .count()
            };
            let answered = answer(&members);
            members.entry(name).or_default().lives = !ending;
            let lives = members.values().filter(|member| member.lives).count();
            let answers = answer(&members);
            anyhow::ensure!(
                lives <= most && (answers >= answered || answers >= fewest),
                "{lives} workers live and {answers} answer at revision {}: {members:#?}\n{}",
                event.revision,
                trail.join("\n")
            );
        }
        Ok(())
    }

    /// What is there at the end, without times and places.
    async fn end(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut end = BTreeMap::new();
        let all = ListParams::default();
        for worker in self.api::<LlavaWorker>().list(&all).await? {
            end.insert(format!("worker {}", worker.name_any()), json!(worker.spec));
        }
        for pod in self.api::<Pod>().list(&all).await? {
            let container = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.containers.first().cloned());
            let made = container.map(|container| (container.image, container.args));
            end.insert(
                format!("pod {}", pod.name_any()),
                json!([pod.metadata.labels, made]),
            );
        }
        for lease in self.api::<Lease>().list(&all).await? {
            end.insert(
                format!("lease {}", lease.name_any()),
                json!(lease.metadata.labels),
            );
        }
        for role in self.api::<Role>().list(&all).await? {
            end.insert(format!("role {}", role.name_any()), json!(role.rules));
        }
        for budget in self.api::<PodDisruptionBudget>().list(&all).await? {
            end.insert(format!("budget {}", budget.name_any()), json!(budget.spec));
        }
        let status = self
            .api::<LlavaDeployment>()
            .get("llava")
            .await?
            .status
            .unwrap_or_default();
        end.insert(
            "status".into(),
            json!([
                status.desired_replicas,
                status.current_revision,
                status.summary,
                status.selector
            ]),
        );
        Ok(end)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    lives: bool,
    answers: bool,
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(ready))
}

/// Makes what these runs begin with, all by one healthy operator.
async fn prepare(cluster: &Cluster, runs: &[Run<'_>]) -> anyhow::Result<()> {
    try_join_all(runs.iter().map(Run::found)).await?;
    if runs.iter().all(|run| run.workload == Workload::Create) {
        return Ok(());
    }
    let operator = Operator::start(cluster, None, Faults::none()).await?;
    for run in runs {
        run.reach(REPLICAS).await?;
    }
    let mut writes = 0;
    while writes < operator.faults.writes().len() {
        writes = operator.faults.writes().len();
        tokio::time::sleep(REST).await;
    }
    operator.kill().await;
    Ok(())
}

async fn survives(workload: Workload) -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_kinds().with_fake_nodes(3);
    let cluster = Arc::new(cluster.await?);
    let run = |name: String| Run {
        cluster: &cluster,
        namespace: name,
        workload,
    };
    let first = run("clean".into());
    prepare(&cluster, std::slice::from_ref(&first)).await?;
    let Course {
        outcome: clean,
        writes,
        ..
    } = first.go(Faults::none()).await?;
    anyhow::ensure!(
        writes > 3,
        "a workload that writes {writes} times shows nothing"
    );
    let plans: Vec<_> = (0..writes)
        .flat_map(|write| {
            [
                (write, Fate::KillBefore, "before"),
                (write, Fate::KillAfter, "after"),
            ]
        })
        .collect();
    let mut missed = plans.clone();
    for attempt in 0..TRIES {
        let runs: Vec<_> = missed
            .iter()
            .map(|(write, _, when)| run(format!("{when}-{write}-{attempt}")))
            .collect();
        prepare(&cluster, &runs).await?;
        let results: Vec<anyhow::Result<Option<_>>> = stream::iter(missed.iter().zip(&runs))
            .map(async |(plan, run)| {
                let (write, fate, when) = *plan;
                let what = format!("death {when} write {write}");
                let course = run
                    .go(Faults::at_write(write, fate))
                    .await
                    .map_err(|error| error.context(what.clone()))?;
                anyhow::ensure!(
                    course.outcome == clean,
                    "{what}: {:#?}\nand without it: {clean:#?}",
                    course.outcome
                );
                Ok((!course.died).then_some(*plan))
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let results: Vec<_> = results.into_iter().collect::<anyhow::Result<_>>()?;
        missed = results.into_iter().flatten().collect();
        if missed.is_empty() {
            break;
        }
    }
    let (planned, deaths) = (plans.len(), plans.len() - missed.len());
    println!("{workload:?}: {writes} writes, {deaths} of {planned} deaths came and were survived");
    anyhow::ensure!(
        missed.len() <= FEW.max(planned / ONE_IN),
        "{deaths} of {planned} deaths came; these never did: {missed:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_write_of_a_creation_changes_nothing() -> anyhow::Result<()> {
    survives(Workload::Create).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_write_of_a_scale_up_changes_nothing() -> anyhow::Result<()> {
    survives(Workload::ScaleUp).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_write_of_a_scale_down_changes_nothing() -> anyhow::Result<()> {
    survives(Workload::ScaleDown).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_write_of_a_rollout_changes_nothing() -> anyhow::Result<()> {
    survives(Workload::Rollout).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_write_after_a_worker_failed_changes_nothing() -> anyhow::Result<()> {
    survives(Workload::WorkerFailure).await
}
