//! The addresses of a cluster, and the link that joins it to this machine.
//!
//! All of them come from 198.18.0.0/15, which RFC 2544 sets aside for tests of
//! network gear: no machine's own network, Docker's or a cloud's lies there.
//! Each cluster has one place, and with it a /22 for Pods and node and a /22 for
//! Services.

use std::net::Ipv4Addr;

use tokio::process::Command;

use super::{command, error::Error};

/// How many clusters fit side by side.
pub(super) const PLACES: u8 = 64;

/// The addresses that belong to one place.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    place: u8,
}

impl Network {
    /// The network of a place below [`PLACES`].
    #[must_use]
    pub fn new(place: u8) -> Self {
        Self { place }
    }

    /// The name of the link on this machine's side.
    #[must_use]
    pub fn link(self) -> String {
        format!("llava-test{}", self.place)
    }

    /// This machine, as the cluster sees it.
    #[must_use]
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 4 * self.place + 2, 1)
    }

    /// The node, which is also where the API server answers.
    #[must_use]
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 4 * self.place + 2, 2)
    }

    /// The range of Pod addresses.
    #[must_use]
    pub fn pods(self) -> String {
        format!("198.18.{}.0/23", 4 * self.place)
    }

    /// The range of Service addresses.
    #[must_use]
    pub fn services(self) -> String {
        format!("198.19.{}.0/22", 4 * self.place)
    }

    /// The address of the cluster's name server.
    #[must_use]
    pub fn dns(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, 4 * self.place, 10)
    }

    /// Joins the network namespace of the process `holder` to this machine.
    pub(super) async fn connect(self, holder: u32) -> Result<(), Error> {
        let (link, host, node) = (self.link(), self.host(), self.node());
        let here = format!(
            "link add {link} type veth peer name eth0 netns {holder}\n\
             address add {host}/30 dev {link}\n\
             link set {link} up\n\
             route add {} via {node} dev {link} onlink\n\
             route add {} via {node} dev {link} onlink\n",
            self.pods(),
            self.services(),
        );
        command::feed(Command::new("ip").args(["-batch", "-"]), &here).await?;
        let there = format!(
            "link set lo up\n\
             address add {node}/30 dev eth0\n\
             link set eth0 up\n\
             route add default via {host}\n"
        );
        let mut inside = Command::new("nsenter");
        inside.args([
            "--target",
            &holder.to_string(),
            "--net",
            "ip",
            "-batch",
            "-",
        ]);
        command::feed(&mut inside, &there).await?;
        Ok(())
    }

    /// Takes the link away, and with it its routes.
    pub(super) async fn disconnect(self) {
        // It may be gone already: the kernel takes it with the namespace.
        let _ = command::run(Command::new("ip").args(["link", "delete", &self.link()])).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_places_share_an_address() {
        let mut seen = std::collections::BTreeSet::new();
        for place in 0..PLACES {
            let network = Network::new(place);
            for address in [
                network.host().to_string(),
                network.node().to_string(),
                network.dns().to_string(),
                network.pods(),
                network.services(),
            ] {
                assert!(seen.insert(address));
            }
        }
    }
}
