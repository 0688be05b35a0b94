//! What is measured, and how it is started.

use std::net::SocketAddr;

use crate::run::Options;

/// What stands for the workers themselves.
pub(crate) const DIRECT: &str = "direct";
/// The bare pass-through.
pub(crate) const FLOOR: &str = "floor";

/// Something to be measured.
pub(crate) struct Target {
    pub(crate) name: String,
    /// Nothing for [`DIRECT`].
    pub(crate) command: Option<(String, Vec<String>)>,
}

pub(crate) fn targets(options: &Options, me: &str, workers: &[SocketAddr]) -> Vec<Target> {
    let addresses: Vec<String> = workers.iter().map(SocketAddr::to_string).collect();
    let mut floor = vec!["floor".to_owned(), "{address}".to_owned()];
    floor.extend(addresses.clone());
    let mut targets = vec![
        Target {
            name: DIRECT.to_owned(),
            command: None,
        },
        Target {
            name: FLOOR.to_owned(),
            command: Some((me.to_owned(), floor)),
        },
        Target {
            name: "llava-router".to_owned(),
            command: Some((options.router.clone(), router_args(workers))),
        },
    ];
    for peer in &options.peer {
        let (name, command) = peer.split_once('=').expect("--peer name=command");
        let urls: Vec<String> = addresses
            .iter()
            .map(|worker| format!("http://{worker}"))
            .collect();
        let mut words = command.split_whitespace().flat_map(|word| {
            if word == "{workers}" {
                urls.clone()
            } else {
                vec![word.to_owned()]
            }
        });
        let program = words.next().unwrap();
        targets.push(Target {
            name: name.to_owned(),
            command: Some((program, words.collect())),
        });
    }
    targets
}

/// The flags of the router, but for its addresses.
pub(crate) fn router_args(workers: &[SocketAddr]) -> Vec<String> {
    let flags = [
        "--listen={address}",
        "--admin-listen={admin}",
        "--log-filter=warn",
        "--model=m",
        "--no-page",
    ];
    let workers = workers.iter().map(|w| format!("--worker=http://{w}"));
    flags
        .map(str::to_owned)
        .into_iter()
        .chain(workers)
        .collect()
}

impl Target {
    /// The command, at this address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<(String, Vec<String>)> {
        let mut admin = address;
        admin.set_port(address.port() + 1);
        let fill = |arg: &String| {
            arg.replace("{address}", &address.to_string())
                .replace("{admin}", &admin.to_string())
                .replace("{port}", &address.port().to_string())
                .replace("{metrics}", &admin.port().to_string())
        };
        let (program, args) = self.command.as_ref()?;
        Some((program.clone(), args.iter().map(fill).collect()))
    }
}
