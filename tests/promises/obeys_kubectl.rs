//! kubectl alone is enough: on a real node, in a namespace that takes restricted
//! Pods only, it explains, waits for, scales and removes what is served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use crds::LlavaWorker;
use crds::resources::Resources;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use kube::api::ListParams;
use tests::ask::{Answer, Question};
use tests::cluster::wait_for;
use tests::install::{Installed, PATIENCE, example_image, llava_shapes};
use tokio::sync::oneshot;

/// What the kernel says of a container's process: see proc_pid_status(5).
const CONFINED: [(&str, &str); 4] = [
    ("Uid", "65532"),
    ("CapEff", "0000000000000000"),
    ("NoNewPrivs", "1"),
    // 2: a filter of system calls.
    ("Seccomp", "2"),
];

#[tokio::test]
async fn kubectl_explains_waits_scales_and_deletes_with_a_drain() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let mut deployment = llava_shapes()?;
    // Slow enough to be caught in the middle of an answer.
    let slow = BTreeMap::from([("cpu".to_owned(), Quantity("50m".to_owned()))]);
    deployment.spec.resources = Some(Resources {
        requests: slow.clone(),
        limits: slow,
    });
    llava.apply(&deployment).await?;
    let wait = ["wait", "--for=condition=Available", "lld/llava-shapes"];
    llava
        .kubectl(&[&wait[..], &["--timeout=120s"]].concat())
        .await?;
    // Of all commands this one takes the word of a cache, which helm filled before
    // the kinds were there; any that looks for one of them has it filled again.
    let explained = llava.kubectl(&["explain", "lld.spec.model.source"]).await?;
    for source in ["huggingFace", "persistentVolumeClaim", "objectStore"] {
        ensure!(explained.contains(source), "{explained}");
    }
    llava.wait_ready("llava-shapes", 2).await?;

    llava
        .kubectl(&["scale", "lld/llava-shapes", "--replicas=1"])
        .await?;
    llava.wait_ready("llava-shapes", 1).await?;
    llava.wait_workers("llava-shapes", 1).await?;
    let table = llava.kubectl(&["get", "lld", "llava-shapes"]).await?;
    ensure!(table.contains("Ready"), "{table}");

    drains(&llava).await?;
    let gone = wait_for("all workers to be gone", PATIENCE, async || {
        let all = ListParams::default();
        let left = llava.api::<LlavaWorker>().list(&all).await.ok()?;
        left.items.is_empty().then_some(())
    });
    gone.await?;
    Ok(())
}

/// `kubectl delete` lets the worker finish the answer that it has begun.
async fn drains(llava: &Installed) -> anyhow::Result<()> {
    let asker = llava.asker().await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let question = question.endless();
    let told = Arc::new(AtomicBool::new(false));
    let (began, first_words) = oneshot::channel();
    let (mut began, deleted) = (Some(began), told.clone());
    let answer = tokio::spawn(async move {
        let mut after = 0;
        let seen = |_: &Answer| {
            after += usize::from(deleted.load(Ordering::SeqCst));
            if let Some(began) = began.take() {
                let _ = began.send(());
            }
        };
        let answer = asker.watch(&question, seen).await;
        answer.map(|answer| (answer, after))
    });
    first_words.await?;
    let worker = llava.workers("llava-shapes").await?.remove(0).name_any();
    // However long the deletion takes, it meets the worker in the middle of the answer.
    llava.signal(&worker, "STOP").await?;
    llava
        .kubectl(&["delete", "lld", "llava-shapes", "--wait=false"])
        .await?;
    llava.wait_workers("llava-shapes", 0).await?;
    // The only worker has been told to end.
    told.store(true, Ordering::SeqCst);
    llava.signal(&worker, "CONT").await?;
    let (answer, after) = answer.await??;
    ensure!(
        answer.is_whole() && answer.done,
        "a deletion cuts no stream: {answer:?}"
    );
    ensure!(after > 1, "the answer ended before its worker was told to");
    Ok(())
}

#[tokio::test]
async fn workers_are_confined_and_others_are_not_let_in() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let intruder = ["run", "intruder", "--image=none", "--privileged"];
    let refused = llava.kubectl(&intruder).await.err();
    let refused = refused.context("a privileged Pod was taken")?.to_string();
    ensure!(
        refused.contains("violates PodSecurity \"restricted"),
        "{refused}"
    );

    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    for pod in llava.workers("llava-shapes").await? {
        let status = process_status(&llava, &pod.name_any()).await?;
        for (field, value) in CONFINED {
            let line = status.lines().find(|line| line.starts_with(field));
            let found = line.and_then(|line| line.split_whitespace().nth(1));
            ensure!(found == Some(value), "{field} is {found:?} in\n{status}");
        }
    }
    Ok(())
}

/// `/proc/PID/status` of the worker process of a Pod.
async fn process_status(llava: &Installed, pod: &str) -> anyhow::Result<String> {
    // As in `Installed::kill`: a process is known by the name in its environment.
    let script = format!(
        "found=$(grep -lzxF POD_NAME={pod} /proc/[0-9]*/environ 2>/dev/null | head -n 1)
         cat ${{found%environ}}status"
    );
    Ok(llava
        .cluster()
        .inside_output("sh", &["-c", &script])
        .await?)
}
