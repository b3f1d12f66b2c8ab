//! A slot: the share of one device that runs one trial at a time.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

impl DeviceKind {
    /// The word users write: `cpu`, `cuda`, `metal`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

/// Name of a slot, `cpu:0` or `cuda:1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    /// Kind of its device.
    pub kind: DeviceKind,
    /// For GPUs the device's ordinal, for the CPU the number of the share.
    pub index: usize,
}

/// A slot and the threads its trial may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub id: SlotId,
    /// Threads of a trial here.
    pub threads: usize,
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.index)
    }
}

/// A slot name that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{found}` is no slot; expected `cpu:N`, `cuda:N` or `metal:N`")]
pub struct SlotParseError {
    /// What was given.
    pub found: String,
}

impl FromStr for SlotId {
    type Err = SlotParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = || SlotParseError { found: text.to_owned() };
        let (kind, index) = text.split_once(':').ok_or_else(err)?;
        let kind = match kind {
            "cpu" => DeviceKind::Cpu,
            "cuda" => DeviceKind::Cuda,
            "metal" => DeviceKind::Metal,
            _ => return Err(err()),
        };
        let index = index.parse().map_err(|_ignored: std::num::ParseIntError| err())?;
        Ok(Self { kind, index })
    }
}

impl Serialize for SlotId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["cpu:0", "cuda:3", "metal:0"] {
            assert_eq!(name.parse::<SlotId>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn other_words_are_refused() {
        for name in ["cpu", "gpu:0", "cuda:x", ""] {
            assert!(name.parse::<SlotId>().is_err(), "{name}");
        }
    }
}
