//! Where a model runs, as flags say it.

use candle_core::Device;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Where a model runs: the first CUDA device for programs built with the feature `cuda`, the
/// processors for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The processors, in f32.
    Cpu,
    /// A CUDA device by its number among those that the process sees, in bf16 if nothing else is
    /// asked for.
    Cuda(usize),
}

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program knows processors alone.
    #[error(
        "{wanted} is asked for, and this program is built for processors alone: use --device cpu, or a program or image that \
         is built with the feature `cuda`"
    )]
    NotBuilt {
        /// What was asked for.
        wanted: DeviceChoice,
    },
    /// The device does not open.
    #[error("{wanted} does not open (--device cpu runs on the processors): {source}")]
    Unusable {
        /// What was asked for.
        wanted: DeviceChoice,
        /// What the driver says.
        source: candle_core::Error,
    },
}

impl DeviceChoice {
    /// The device itself.
    ///
    /// # Errors
    /// When there is no such device for this program.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NotBuilt { wanted: self }),
            Self::Cuda(number) => {
                let opened = Device::new_cuda(number);
                opened.map_err(|source| DeviceError::Unusable {
                    wanted: self,
                    source,
                })
            }
        }
    }
}

/// Bytes that a device with memory of its own has left; `None` for the processors, and where the driver does not tell.
#[cfg(feature = "cuda")]
pub(super) fn free_memory(device: &Device) -> Option<u64> {
    let Device::Cuda(device) = device else {
        return None;
    };
    let (free, _) = device.cuda_stream().context().mem_get_info().ok()?;
    u64::try_from(free).ok()
}

/// Programs without CUDA know no device with memory of its own.
#[cfg(not(feature = "cuda"))]
pub(super) fn free_memory(_: &Device) -> Option<u64> {
    None
}

impl Default for DeviceChoice {
    fn default() -> Self {
        match cfg!(feature = "cuda") {
            true => Self::Cuda(0),
            false => Self::Cpu,
        }
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is no device: use cpu, cuda or cuda:NUMBER");
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                number.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for device in [
            DeviceChoice::Cpu,
            DeviceChoice::Cuda(0),
            DeviceChoice::Cuda(3),
        ] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.contains("cpu, cuda or cuda:NUMBER"), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_runs_on_processors_and_says_so_when_asked_for_more() {
        assert_eq!(DeviceChoice::default(), DeviceChoice::Cpu);
        let error = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert!(error.contains("cuda:1") && error.contains("--device cpu"));
    }
}
