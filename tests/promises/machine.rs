//! What a cluster leaves on the machine, looked for place by place.

use std::{
    collections::BTreeSet,
    fs::{self, File},
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
}

impl Traces {
    /// Notes where to look, while the cluster runs.
    pub(crate) fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::at(cluster.endpoint())
    }

    /// The same for a cluster that this process does not own.
    pub(crate) fn at(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let mut taken = places().into_iter();
        let place = taken.find(|place| place.folder() == endpoint.folder);
        let holder = Process::of(endpoint.holder);
        Self::in_place(place.context("no place")?, holder.context("no holder")?)
    }

    /// The same for a cluster that somebody keeps under this name.
    pub(crate) fn of_kept(name: &str) -> anyhow::Result<Self> {
        let owned = places()
            .into_iter()
            .filter_map(|place| Some((place.owner()?, place)));
        let found = owned
            .filter(|(owner, _)| owner.kept.as_deref() == Some(name))
            .find_map(|(owner, place)| Some((place, owner.holder?)));
        let (place, holder) = found.context("no place")?;
        Self::in_place(place, holder)
    }

    fn in_place(place: Place, holder: Process) -> anyhow::Result<Self> {
        let namespaces = ["pid", "uts"].map(|kind| {
            let path = format!("/proc/{}/ns/{kind}", holder.pid());
            Ok((File::open(&path)?, fs::read_link(path)?))
        });
        Ok(Self {
            place,
            holder,
            namespaces: namespaces.into_iter().collect::<std::io::Result<_>>()?,
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
        let folder = self.place.folder();
        found.extend(
            folder
                .exists()
                .then(|| format!("folder {}", folder.display())),
        );
        let links = run(Command::new("ip").args(["-oneline", "link"])).await?;
        let link = self.place.network().link();
        found.extend(
            links
                .contains(&format!(" {link}@"))
                .then(|| format!("link {link}")),
        );
        let cgroups = self.place.cgroup().folders();
        let left = cgroups.iter().filter(|folder| folder.exists());
        found.extend(left.map(|folder| format!("cgroup {}", folder.display())));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let marks = [folder.display().to_string(), "nsfs".to_owned()];
        let ours = mounts
            .lines()
            .filter(|line| marks.iter().any(|mark| line.contains(mark)));
        found.extend(ours.map(|line| format!("mount {line}")));
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

/// What belongs to the whole machine and no cluster may change: sysctls that a
/// kubelet sets, and chains of the machine's own iptables.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    sysctls: Vec<String>,
    chains: BTreeSet<String>,
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
        })
    }
}
