//! Several processes that train one model: after each step their gradients are
//! added up. Rank 0 gathers over TCP, adds in rank order, and hands the sum back, so
//! every process holds the same bits.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// This process's place among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Where rank 0 listens, `host:port`.
    pub rendezvous: String,
}

/// Why the processes could not work together.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Rank 0 could not listen.
    #[error("listen for the other ranks on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Rank 0 could not be reached in time.
    #[error("connect to rank 0 at {address}")]
    Connect {
        /// Where.
        address: String,
        /// The last reason.
        source: std::io::Error,
    },
    /// A peer went away or speaks of another run.
    #[error("exchange gradients with rank {rank}")]
    Exchange {
        /// The peer.
        rank: usize,
        /// Why.
        source: std::io::Error,
    },
}

/// The processes of one run; a group of one exchanges nothing.
#[derive(Debug)]
pub struct Group {
    place: Place,
    /// At rank 0 every other rank in order; elsewhere rank 0 alone.
    peers: Vec<TcpStream>,
}

/// How long a rank may take to appear or to finish a step.
const PATIENCE: Duration = Duration::from_secs(600);

impl Group {
    /// A group of this process alone.
    pub fn alone() -> Self {
        Self {
            place: Place {
                rank: 0,
                world: 1,
                rendezvous: String::new(),
            },
            peers: Vec::new(),
        }
    }

    /// Meets the other processes.
    ///
    /// # Errors
    /// When rank 0 cannot be reached, or a rank does not appear.
    pub fn join(place: Place) -> Result<Self, GroupError> {
        let address = place.rendezvous.clone();
        let peers = match place {
            Place { world: 1, .. } => Vec::new(),
            Place { rank: 0, world, .. } => {
                let listen = |source| GroupError::Listen {
                    address: address.clone(),
                    source,
                };
                let listener = TcpListener::bind(&*address).map_err(listen)?;
                let mut found: Vec<Option<TcpStream>> = (1..world).map(|_| None).collect();
                while found.iter().any(Option::is_none) {
                    let (mut stream, _) = listener.accept().map_err(listen)?;
                    prepare(&stream).map_err(listen)?;
                    let mut rank = [0u8; 8];
                    stream.read_exact(&mut rank).map_err(listen)?;
                    let rank = u64::from_le_bytes(rank) as usize;
                    if let Some(slot) = rank.checked_sub(1).and_then(|i| found.get_mut(i)) {
                        *slot = Some(stream);
                    }
                }
                found.into_iter().flatten().collect()
            }
            Place { rank, .. } => {
                let connect = |source| GroupError::Connect {
                    address: address.clone(),
                    source,
                };
                let mut stream = reach(&address).map_err(connect)?;
                prepare(&stream).map_err(connect)?;
                stream
                    .write_all(&(rank as u64).to_le_bytes())
                    .map_err(connect)?;
                vec![stream]
            }
        };
        Ok(Self { place, peers })
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.place.world
    }

    /// Replaces `values` by their sum over all processes.
    ///
    /// # Errors
    /// Names the rank that went away.
    pub fn sum(&mut self, values: &mut [f32]) -> Result<(), GroupError> {
        let root = self.place.rank == 0;
        for (i, peer) in self.peers.iter_mut().enumerate() {
            let failed = |source| GroupError::Exchange {
                rank: if root { i + 1 } else { 0 },
                source,
            };
            if root {
                let theirs = receive(peer, values.len()).map_err(failed)?;
                for (mine, theirs) in values.iter_mut().zip(theirs) {
                    *mine += theirs;
                }
            } else {
                send(peer, values).map_err(failed)?;
                values.copy_from_slice(&receive(peer, values.len()).map_err(failed)?);
            }
        }
        if root {
            for (i, peer) in self.peers.iter_mut().enumerate() {
                send(peer, values).map_err(|source| GroupError::Exchange {
                    rank: i + 1,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Rank 0 may start later than the others: its name may not resolve yet, and nothing listens.
fn reach(address: &str) -> std::io::Result<TcpStream> {
    let started = shell::clock::now();
    loop {
        let attempt = (address.to_socket_addrs())
            .and_then(|mut all| all.next().ok_or(std::io::ErrorKind::NotFound.into()))
            .and_then(|one| TcpStream::connect_timeout(&one, Duration::from_secs(5)));
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::park_timeout(Duration::from_millis(200)),
        }
    }
}

fn send(stream: &mut TcpStream, values: &[f32]) -> std::io::Result<()> {
    stream.write_all(&(values.len() as u64).to_le_bytes())?;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    stream.write_all(&bytes)
}

fn receive(stream: &mut TcpStream, count: usize) -> std::io::Result<Vec<f32>> {
    let mut length = [0u8; 8];
    stream.read_exact(&mut length)?;
    let theirs = u64::from_le_bytes(length);
    if theirs != count as u64 {
        let message =
            format!("it sent {theirs} values, {count} were due: do both run the same settings?");
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            message,
        ));
    }
    let mut bytes = vec![0u8; count * 4];
    stream.read_exact(&mut bytes)?;
    Ok(bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_the_same_sum() {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let ranks = (0..3).map(|rank| {
            let rendezvous = format!("127.0.0.1:{port}");
            std::thread::spawn(move || {
                let mut group = Group::join(Place {
                    rank,
                    world: 3,
                    rendezvous,
                })
                .unwrap();
                let mut values = vec![rank as f32, 10.0 * rank as f32];
                group.sum(&mut values).unwrap();
                group.sum(&mut values).unwrap();
                values
            })
        });
        let ranks: Vec<_> = ranks.collect();
        for rank in ranks {
            assert_eq!(rank.join().unwrap(), [9.0, 90.0]);
        }
    }
}
