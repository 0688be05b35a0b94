//! The files of a cluster: configuration with the addresses filled in, and
//! credentials. All lie in the folder of its place, with which they go.

use std::{fs, io::Read, path::Path};

use tokio::process::Command;

use super::{command, error::Error, parts::SOURCES, place::Place, program::Program};

/// The identities that the API server knows, and the groups that give them their
/// rights. Programs other than these use Kubernetes' own tokens.
const IDENTITIES: [(&str, &str, &str); 5] = [
    ("admin", "admin", "system:masters"),
    (
        "kube-controller-manager",
        "system:kube-controller-manager",
        "system:masters",
    ),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kubelet", "system:node:node-0", "system:nodes"),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// Files of `tests/cluster/config`, and where they go in the place's folder.
const FILES: [(&str, &str); 6] = [
    ("kubelet.yaml", "kubelet.yaml"),
    ("kube-proxy.yaml", "kube-proxy.yaml"),
    ("containerd.toml", "containerd.toml"),
    ("pods.conflist", "cni/pods.conflist"),
    ("hosts", "hosts"),
    ("coredns.yaml", "coredns.yaml"),
];

/// Writes everything that does not depend on the API server.
pub(super) async fn write(place: &Place) -> Result<(), Error> {
    let folder = place.folder();
    for inner in ["pki", "cni", "logs"] {
        let path = folder.join(inner);
        fs::create_dir(&path).map_err(Error::file("make the folder", path))?;
    }
    for (from, to) in FILES {
        let path = Path::new(SOURCES).join("config").join(from);
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        put(&folder.join(to), &fill(&text, place))?;
    }
    // The machine's name servers are out of reach: better none than a time-out.
    put(&folder.join("resolv.conf"), "")?;
    stages(place)?;
    credentials(place)?;
    let key = folder.join("service-accounts.key");
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
        ])
        .arg(key);
    command::run(&mut openssl).await?;
    Ok(())
}

/// The path of a program's log.
pub(super) fn log(place: &Place, program: Program) -> std::path::PathBuf {
    place.folder().join("logs").join(format!("{program}.log"))
}

fn fill(text: &str, place: &Place) -> String {
    let network = place.network();
    text.replace("${folder}", &place.folder().display().to_string())
        .replace("${node}", &network.node().to_string())
        .replace("${pods}", &network.pods())
        .replace("${dns}", &network.dns().to_string())
        .replace("${cgroup}", &place.cgroup().path())
}

/// One file out of the stages of the fake nodes: kwok reads a single one.
fn stages(place: &Place) -> Result<(), Error> {
    let folder = Path::new(SOURCES).join("stages");
    let entries = fs::read_dir(&folder).map_err(Error::file("list", &folder))?;
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let mut all = String::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        all.push_str("---\n");
        all.push_str(&text);
    }
    put(&place.folder().join("kwok.yaml"), &all)
}

fn credentials(place: &Place) -> Result<(), Error> {
    let folder = place.folder();
    let mut tokens = String::new();
    for (file, user, group) in IDENTITIES {
        let token = random_token()?;
        tokens.push_str(&format!("{token},{user},{user},\"{group}\"\n"));
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}:6443", place.network().node()),
                "certificate-authority": folder.join("pki/apiserver.crt"),
            }}],
            "users": [{"name": user, "user": {"token": token}}],
        });
        put(
            &folder.join(format!("{file}.kubeconfig")),
            &kubeconfig.to_string(),
        )?;
    }
    put(&folder.join("tokens.csv"), &tokens)
}

fn random_token() -> Result<String, Error> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0_u8; 16];
    fs::File::open(SOURCE)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::file("read", SOURCE))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn put(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::file("write", path))
}
