//! What a cluster leaves on the machine, looked for place by place. Once it has
//! gone, its place may be another cluster's at once: each thing is known by more
//! than its name.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tests::cluster::{Cluster, Endpoint, Place, Process, places, run};
use tokio::process::Command;

/// Where a cluster may leave something behind.
pub(crate) struct Traces {
    place: Place,
    holder: Process,
    /// The namespaces of processes and of names, which every process of a cluster
    /// is in. Held open, so that no later one gets their number.
    namespaces: Vec<(File, PathBuf)>,
    /// The folders of the place and of its cgroup, held open for the same reason.
    folders: Vec<(&'static str, PathBuf, File)>,
    /// The link with its number, which no later one gets.
    link: String,
}

impl Traces {
    /// Notes where to look, while the cluster runs.
    pub(crate) async fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::at(cluster.endpoint()).await
    }

    /// The same for a cluster that this process does not own.
    pub(crate) async fn at(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let mut taken = places().into_iter();
        let place = taken.find(|place| place.folder() == endpoint.folder);
        let holder = Process::of(endpoint.holder);
        Self::in_place(place.context("no place")?, holder.context("no holder")?).await
    }

    /// The same for a cluster that somebody keeps under this name.
    pub(crate) async fn of_kept(name: &str) -> anyhow::Result<Self> {
        let owned = places()
            .into_iter()
            .filter_map(|place| Some((place.owner()?, place)));
        let found = owned
            .filter(|(owner, _)| owner.kept.as_deref() == Some(name))
            .find_map(|(owner, place)| Some((place, owner.holder?)));
        let (place, holder) = found.context("no place")?;
        Self::in_place(place, holder).await
    }

    async fn in_place(place: Place, holder: Process) -> anyhow::Result<Self> {
        let namespaces = ["pid", "uts"].map(|kind| {
            let path = format!("/proc/{}/ns/{kind}", holder.pid());
            Ok((File::open(&path)?, fs::read_link(path)?))
        });
        let cgroups = place.cgroup().folders().into_iter();
        // Without a real node it has none.
        let cgroups = cgroups.filter(|folder| folder.exists());
        let folder = ("folder", place.folder().to_owned());
        let folders = [folder]
            .into_iter()
            .chain(cgroups.map(|path| ("cgroup", path)))
            .map(|(kind, path)| Ok((kind, path.clone(), File::open(path)?)));
        let folders = folders.collect::<std::io::Result<_>>()?;
        let name = format!(" {}@", place.network().link());
        let link = links().await?.into_iter().find(|link| link.contains(&name));
        Ok(Self {
            place,
            holder,
            namespaces: namespaces.into_iter().collect::<std::io::Result<_>>()?,
            folders,
            link: link.context("no link")?,
        })
    }

    /// Who supervises the cluster.
    pub(crate) fn supervisor(&self) -> Option<Process> {
        Some(self.place.owner()?.supervisor)
    }

    /// Everything of it that is still there.
    pub(crate) async fn found(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        if self.holder.is_alive() {
            found.push("its first process".to_owned());
        }
        found.extend(self.processes());
        let left = self.folders.iter().filter(|(_, path, held)| {
            let there = fs::metadata(path).and_then(|found| Ok((found, held.metadata()?)));
            there.is_ok_and(|(found, held)| (found.dev(), found.ino()) == (held.dev(), held.ino()))
        });
        found.extend(left.map(|(kind, path, _)| format!("{kind} {}", path.display())));
        let links = links().await?;
        let link = links.iter().find(|link| **link == self.link);
        found.extend(link.map(|link| format!("link {link}")));
        // No cluster mounts anything there on the machine itself, nor does the next one.
        let ours = |line: &&String| {
            let mut words = line.split(' ');
            words.any(|word| Path::new(word).starts_with(self.place.folder()))
        };
        found.extend(
            mounts()?
                .iter()
                .filter(ours)
                .map(|line| format!("mount {line}")),
        );
        Ok(found)
    }

    /// Processes in its namespaces: as long as there is one, they live.
    fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").into_iter().flatten();
        let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let inside = |folder: &Path| {
            ["pid", "uts"].iter().any(|kind| {
                let found = fs::read_link(folder.join("ns").join(kind));
                found.is_ok_and(|found| self.namespaces.iter().any(|(_, name)| *name == found))
            })
        };
        folders
            .filter(|folder| folder.join("ns").exists() && inside(folder))
            .map(|folder| format!("process {}", folder.display()))
            .collect()
    }
}

/// The machine's links by number and name, such as `12: eth0@if13`.
async fn links() -> anyhow::Result<Vec<String>> {
    let links = run(Command::new("ip").args(["-oneline", "link"])).await?;
    let links = links.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ": ");
        Some(format!("{}: {}", parts.next()?, parts.next()?))
    });
    Ok(links.collect())
}

/// The machine's mounts, by proc_pid_mountinfo(5).
fn mounts() -> std::io::Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().map(str::to_owned).collect())
}

/// What belongs to the whole machine and no cluster may change: sysctls that a
/// kubelet sets, chains of the machine's own iptables, and namespaces that are kept
/// by a mount, as those of Pods are inside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    sysctls: Vec<String>,
    chains: BTreeSet<String>,
    namespaces: Vec<String>,
}

impl Settings {
    /// As they are now.
    pub(crate) async fn now() -> anyhow::Result<Self> {
        let sysctls = [
            "vm/overcommit_memory",
            "vm/panic_on_oom",
            "kernel/panic",
            "kernel/panic_on_oops",
            "kernel/keys/root_maxkeys",
            "kernel/keys/root_maxbytes",
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/route_localnet",
            "net/netfilter/nf_conntrack_max",
        ];
        let read = |name| fs::read_to_string(Path::new("/proc/sys").join(name));
        let rules = run(&mut Command::new("iptables-save")).await?;
        let marks = ["KUBE-", "CNI-", "NETWORK-POLICIES"];
        let chains = rules
            .lines()
            .filter(|line| marks.iter().any(|mark| line.contains(mark)));
        Ok(Self {
            sysctls: sysctls
                .into_iter()
                .map(|name| read(name).unwrap_or_default())
                .collect(),
            chains: chains.map(str::to_owned).collect(),
            namespaces: mounts()?
                .into_iter()
                .filter(|line| line.contains("nsfs"))
                .collect(),
        })
    }
}
