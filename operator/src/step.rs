//! One child object on its way to its wish: what exists is compared with what
//! should, and written only where they differ. Whose it is decides first: nothing
//! of others is ever taken over.

use crds::condition::reason;
use kube::{Resource, ResourceExt};
use serde_json::Value;

use crate::effects::{EffectError, Effects, Object};
use crate::key::Key;
use crate::subset;

/// What happens to one child.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is as it should be.
    Keep,
    /// It does not exist.
    Create(Value),
    /// It differs.
    Apply(Value),
    /// One of an earlier owner of this name is still being removed.
    Wait,
    /// Somebody else's has the name.
    Taken,
    /// It is no longer wished for; its UID.
    Remove(String),
}

impl Step {
    /// Compares what exists with what should.
    pub fn towards<K: Object>(wanted: Value, found: Option<&K>, owner: &str) -> Self {
        match found {
            None => Self::Create(wanted),
            Some(found) if is_leaving(found, owner) => Self::Wait,
            Some(found) if !is_owned(found, owner) => Self::Taken,
            Some(found) if subset::holds(&wanted, found) => Self::Keep,
            Some(_) => Self::Apply(wanted),
        }
    }

    /// Removes what an earlier wish left.
    pub fn without<K: Object>(found: Option<&K>, owner: &str) -> Self {
        found
            .filter(|found| is_owned(*found, owner) && !is_leaving(*found, owner))
            .and_then(ResourceExt::uid)
            .map_or(Self::Keep, Self::Remove)
    }
}

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// Somebody else's object has the name.
    #[error("{kind} {key} exists and does not belong to its {owner}; delete or rename it")]
    NameTaken {
        /// Its kind.
        kind: String,
        /// Its name.
        key: Key,
        /// The kind of whom it should belong to.
        owner: &'static str,
    },
    /// A child of ours is not what Kubernetes takes.
    #[error("cannot build {kind} {key}: {source}")]
    Build {
        /// Its kind.
        kind: String,
        /// Its name.
        key: Key,
        /// Why.
        source: serde_json::Error,
    },
}

impl StepError {
    /// One word for conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => reason::NAME_TAKEN,
            Self::Effect(_) | Self::Build { .. } => reason::CREATE_REFUSED,
        }
    }

    /// What people have to know of it; failures that pass by themselves are none of that.
    #[must_use]
    pub fn for_people(&self) -> Option<String> {
        match self {
            Self::Effect(error) => error.refusal().map(str::to_owned),
            Self::NameTaken { .. } | Self::Build { .. } => Some(self.to_string()),
        }
    }

    /// Whether the namespace or the owner itself is going away.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Effect(error) if error.is_gone())
    }
}

/// Brings one child to its wish; false when it has to be waited for.
///
/// # Errors
/// When it cannot be written, or somebody else's object has its name.
pub async fn settle<K: Object>(
    step: Step,
    key: &Key,
    owner: (&'static str, &str),
    effects: &Effects,
) -> Result<bool, StepError> {
    let kind = || K::kind(&()).to_string();
    let (owner_kind, owner) = owner;
    let taken = || StepError::NameTaken {
        kind: kind(),
        key: key.clone(),
        owner: owner_kind,
    };
    match step {
        Step::Keep => Ok(true),
        Step::Wait => Ok(false),
        Step::Taken => Err(taken()),
        Step::Remove(uid) => {
            effects.delete::<K>(key, &uid, false).await?;
            Ok(true)
        }
        Step::Apply(wanted) => {
            effects.apply::<K>(key, &wanted).await?;
            Ok(true)
        }
        Step::Create(wanted) => {
            let object: K = serde_json::from_value(wanted).map_err(|source| StepError::Build {
                kind: kind(),
                key: key.clone(),
                source,
            })?;
            match effects.create(&object).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_already_exists() => match effects.get::<K>(key).await? {
                    Some(found) if is_owned(&found, owner) => Ok(true),
                    Some(found) if !is_leaving(&found, owner) => Err(taken()),
                    _ => Ok(false),
                },
                Err(error) => Err(error.into()),
            }
        }
    }
}

fn is_owned<K: Resource>(object: &K, owner: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|reference| reference.controller == Some(true) && reference.uid == owner)
}

/// Whether the object is on its way out: that of an earlier owner of this name is
/// the garbage collector's.
fn is_leaving<K: Resource>(object: &K, owner: &str) -> bool {
    let others = !object.owner_references().is_empty() && !is_owned(object, owner);
    others || object.meta().deletion_timestamp.is_some()
}
