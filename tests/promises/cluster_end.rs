//! However a cluster ends, nothing of it stays on the machine.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use tests::{
    Cluster,
    cluster::{Report, Wish, run, supervisor_command, wait_for},
};
use tokio::process::Command;

use crate::machine::{Settings, Traces};

const NOTHING: [String; 0] = [];
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn nothing_is_left_of_a_cluster_with_running_pods() -> anyhow::Result<()> {
    let before = Settings::now().await?;
    let cluster = Cluster::control_plane().with_real_node().await?;
    let traces = Traces::of(&cluster).await?;
    let found = traces.found().await?;
    for kind in ["process", "folder", "link", "cgroup"] {
        assert!(
            found.iter().any(|trace| trace.starts_with(kind)),
            "a running cluster has a {kind}"
        );
    }
    drop(cluster);
    assert_eq!(traces.found().await?, NOTHING);
    assert_eq!(Settings::now().await?, before);
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_of_a_cluster_that_stayed_until_it_was_taken_down() -> anyhow::Result<()> {
    let kept = Wish {
        kept: Some(format!("test-{}", std::process::id())),
        ..Wish::default()
    };
    let mut supervisor = supervisor_command(&kept).spawn()?;
    let stdout = supervisor.stdout.take().expect("its output");
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let Report::Ready(endpoint) = serde_json::from_str(&line)? else {
        anyhow::bail!("not ready: {line}");
    };
    let traces = Traces::at(&endpoint).await?;
    assert_ne!(traces.found().await?, NOTHING);
    run(Command::new("kill").arg(supervisor.id().to_string())).await?;
    assert!(supervisor.wait()?.success());
    assert_eq!(traces.found().await?, NOTHING);
    Ok(())
}

#[tokio::test]
async fn a_panic_ends_its_cluster() -> anyhow::Result<()> {
    let task = tokio::spawn(async {
        let cluster = Cluster::control_plane().await;
        let traces = match &cluster {
            Ok(cluster) => Traces::of(cluster).await,
            Err(error) => Err(anyhow::Error::msg(error.chain())),
        };
        std::panic::panic_any(traces);
        #[expect(unreachable_code, reason = "it lives until here")]
        drop(cluster);
    });
    let panic = task.await.expect_err("it panics").into_panic();
    let caught = panic.downcast::<anyhow::Result<Traces>>();
    let traces = (*caught.expect("its traces"))?;
    assert_eq!(traces.found().await?, NOTHING);
    Ok(())
}

/// Set in a test process that is to be killed while its cluster runs.
const DOOMED: &str = "LLAVA_TEST_DOOMED";

#[tokio::test]
async fn a_killed_test_process_leaves_nothing() -> anyhow::Result<()> {
    if std::env::var_os(DOOMED).is_some() {
        let cluster = Cluster::control_plane().await?;
        println!("{}", serde_json::to_string(cluster.endpoint())?);
        return std::future::pending().await;
    }
    let mut test = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "--nocapture"])
        .arg("cluster_end::a_killed_test_process_leaves_nothing")
        .env(DOOMED, "")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = BufReader::new(test.stdout.take().expect("its output"));
    let mut lines = stdout.lines().map_while(Result::ok);
    // The harness begins the line with the name of the test.
    let endpoint = lines.find_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok());
    let traces = Traces::at(&endpoint.expect("a cluster in the other process")).await?;
    assert_ne!(traces.found().await?, NOTHING);

    test.kill()?;
    test.wait()?;
    wait_for("the end of all that it had", SOON, async || {
        traces.found().await.ok()?.is_empty().then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn the_next_run_clears_up_after_a_killed_supervisor() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_real_node().await?;
    let traces = Traces::of(&cluster).await?;
    let supervisor = traces.supervisor().expect("an owner");
    run(Command::new("kill").args(["-s", "KILL", &supervisor.pid().to_string()])).await?;
    wait_for("the end of the supervisor", SOON, async || {
        (!supervisor.is_alive()).then_some(())
    })
    .await?;

    // A killed process clears up nothing; another test's next run may have done it by now.
    let _next = Cluster::control_plane().await?;
    assert_eq!(traces.found().await?, NOTHING);
    assert_ne!(traces.supervisor(), Some(supervisor));
    Ok(())
}
