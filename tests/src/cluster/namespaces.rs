//! The namespaces in which a whole cluster lives: processes, mounts, network,
//! names. Their first process does nothing; when it ends, the kernel ends every
//! other process in them and drops every mount, link and iptables chain. That is
//! what makes the end of a cluster complete, however it comes about.

use std::{path::Path, process::Stdio};

use tokio::process::{Child, Command};

use super::{
    command,
    error::Error,
    parts::Parts,
    place::{Place, Process},
    program::REAL_NODE,
};

/// Sysctls of the whole machine that the kubelet would set, and the values that
/// it wants to see. Each is covered inside by a file that holds that value, so
/// that the machine's own stay as they are.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The namespaces of one cluster.
#[derive(Debug)]
pub(super) struct Namespaces {
    holder: Process,
    /// Its end ends the holder too; it is killed when this value is dropped.
    _unshare: Child,
}

impl Namespaces {
    /// Makes them. They end with this process, even when it is killed.
    pub(super) async fn create() -> Result<Self, Error> {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--kill-child=KILL",
                "--fork",
            ])
            .args([
                "--pid",
                "--mount",
                "--mount-proc",
                "--net",
                "--uts",
                "--ipc",
            ])
            // Children of daemons end up with the first process: ignored, they
            // leave no zombies.
            .args(["env", "--ignore-signal=CHLD", "sleep", "infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let unshare = command.spawn().map_err(|source| Error::Start {
            command: "unshare".into(),
            source,
        })?;
        let parent = unshare.id().unwrap_or_default();
        let what = "the first process of the cluster";
        let holder = command::wait_for(what, command::STEP, async || {
            let pid = child_of(parent)?;
            // By then its /proc is mounted.
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "sleep").then(|| Process::of(pid))?
        })
        .await?;
        Ok(Self {
            holder,
            _unshare: unshare,
        })
    }

    /// Their first process.
    pub(super) fn holder(&self) -> Process {
        self.holder
    }

    /// Covers what the cluster writes outside its place with file systems of
    /// its own, and the machine's files that would mislead it.
    pub(super) async fn furnish(&self, place: &Place) -> Result<(), Error> {
        let folder = place.folder().display();
        let mut script = format!(
            "set -e\n\
             hostname {REAL_NODE}\n\
             mount --make-rshared /\n\
             for own in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs $own; done\n\
             mkdir -p /run/lock /run/sysctl /var/lib/cni\n\
             mount --bind {folder}/hosts /etc/hosts\n\
             mount --bind {folder}/resolv.conf /etc/resolv.conf\n"
        );
        for (name, value) in SYSCTLS {
            let cover = name.replace('/', ".");
            script.push_str(&format!(
                "echo {value} > /run/sysctl/{cover}\n\
                 mount --bind /run/sysctl/{cover} /proc/sys/{name}\n"
            ));
        }
        command::feed(&mut enter(self.holder.pid(), Path::new("sh")), &script).await?;
        Ok(())
    }
}

/// A command inside the namespaces whose first process is `holder`.
pub(super) fn enter(holder: u32, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &holder.to_string()])
        .args(["--pid", "--mount", "--net", "--uts", "--ipc", "--"])
        .arg(program);
    command
}

/// Loads an image archive into the real node inside.
///
/// # Errors
/// When the archive cannot be read, or there is no real node.
pub async fn load_image(holder: u32, parts: &Parts, archive: &Path) -> Result<(), Error> {
    let mut import = enter(holder, &parts.path("ctr"));
    import
        .args(["--namespace", "k8s.io", "images", "import", "--local"])
        .arg(archive);
    command::run(&mut import).await?;
    Ok(())
}

/// The first child of a process.
pub(super) fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
